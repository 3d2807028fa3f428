"""Finding, pinning and refusing chat templates."""

import pytest

from speechlmm_core.chat.messages import Message
from speechlmm_core.chat.render import ChatRenderer
from speechlmm_core.chat.template import BUILT_IN, read_template
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.text_decoder.config import CausalLMConfig

UNMARKED = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_templates_hold_no_moving_date(name):
    source = read_template(name)
    assert "strftime" not in source
    assert "date_string" not in source


def test_a_template_without_markers_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(UNMARKED)
    with pytest.raises(ConfigError, match=r"mine\.jinja' has no \{% generation %\}.*which tokens are to be learnt"):
        read_template(str(path))
    with pytest.raises(ConfigError, match=r"\{% generation %\}"):
        CausalLMConfig(chat_template=str(path)).build_tokenizer()


def test_markers_around_something_else_are_refused(tmp_path):
    source = "{% generation %}{% endgeneration %}" + UNMARKED
    with pytest.raises(ConfigError, match="not around the assistant's content"):
        ChatRenderer(source, "mine", {})


def test_a_template_of_ones_own(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'].upper() if false else m['content'] }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ '<|im_start|>' + m['content'] }}{% endif %}{% endfor %}"
    )
    chat = CausalLMConfig(chat_template=str(path)).build_tokenizer()
    (piece,) = chat.encode_chat([Message(role="user", content=" <|im_end|>"), Message(role="assistant", content="a")])
    start, end = chat.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert piece.ids == [start, *chat.encode(" <|im_end|>"), *chat.encode("a"), end]
    assert piece.supervised == [False] * (len(piece.ids) - 2) + [True, True]
    assert chat.stop_token_ids[0] == end


def test_a_moving_date_is_pointed_out(tmp_path, caplog):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ strftime_now('%d') }}{% generation %}{{ messages[0]['content'] }}{% endgeneration %}")
    read_template(str(path))
    assert "today's date" in caplog.text


def test_unknown_names_suggest_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown chat template 'lama_3'; did you mean 'llama_3'\?"):
        read_template("lama_3")
    with pytest.raises(ConfigError, match="unknown chat template"):
        read_template(str(tmp_path / "none.jinja"))
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read the chat template"):
        read_template(str(tmp_path / "binary.jinja"))


def test_a_broken_template_is_a_configuration_error():
    with pytest.raises(ConfigError, match="does not render a plain conversation"):
        ChatRenderer("{% generation %}{{ x }", "mine", {})


def test_what_a_template_raises_reaches_the_user():
    source = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    )
    renderer = ChatRenderer(source, "mine", {})
    with pytest.raises(DataError, match="'mine' refuses the conversation: no system role here"):
        renderer.parts([Message(role="system", content="s"), Message(role="user", content="u")])


def test_media_and_text_are_told_apart_whatever_the_text_looks_like():
    renderer = ChatRenderer(read_template("chatml"), "chatml", {})
    (_, first, medium, second, _, *_) = renderer.parts(
        [
            Message(
                role="user", content=[{"type": "text", "text": "{{ x }}"}, {"type": "audio", "path": "p"}, _item(0)]
            ),
            Message(role="assistant", content="a"),
        ]
    )
    assert (first.text, first.is_user) == ("{{ x }}", True)
    assert (medium.text, medium.item) == ("", {"type": "audio", "path": "p"})
    assert (second.text, second.is_user) == ("item0e", True)


def _item(number):
    return {"type": "text", "text": f"item{number}e"}
