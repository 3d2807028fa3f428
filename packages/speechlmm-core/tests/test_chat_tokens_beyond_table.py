"""Tokenizers with special tokens beyond the embedding table, as Gemma 3's has one for images."""

import json

import pytest
from tokenizers import AddedToken

from speechlmm_core.chat.messages import Message
from speechlmm_core.chat.template import BUILT_IN, read_template
from speechlmm_core.errors import ConfigError
from speechlmm_core.text_decoder.byte_tokenizer import build_byte_tokenizer
from speechlmm_core.text_decoder.config import CausalLMConfig

IMAGE = "<image_soft_token>"
ROWS = 256 + len(BUILT_IN["gemma3"].all)


@pytest.fixture
def folder(tmp_path):
    """Gemma 3's layout in small: the token for images is declared as a role, and is the last one."""
    tokenizer = build_byte_tokenizer("gemma3")
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_token": IMAGE}))
    return tmp_path


def build(folder, rows=ROWS, template="gemma3", **changes):
    model = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": rows}
    return CausalLMConfig(model=model, tokenizer=str(folder), chat_template=template, **changes).build_tokenizer()


def test_a_token_that_nothing_writes_needs_no_row(folder):
    chat = build(folder)
    assert chat.tokenizer.convert_tokens_to_ids(IMAGE) == ROWS
    assert len(chat) == ROWS
    with pytest.raises(
        ConfigError, match=rf"needs {ROWS} rows \(the last for '<end_of_turn>'\).* has {ROWS - 1}; take"
    ):
        build(folder, rows=ROWS - 1)


def test_its_name_stays_text(folder):
    chat = build(folder)
    said = f"{IMAGE} and {IMAGE}"
    assert chat.encode(said) == chat.encode("<image_soft_") + chat.encode("token>") + chat.encode(f" and {IMAGE}")
    assert chat.decode(chat.encode(said)) == said
    messages = [Message(role="user", content=said), Message(role="assistant", content=said)]
    (piece,) = chat.encode_chat(messages)
    assert max(piece.ids) < ROWS


@pytest.mark.parametrize("written", [IMAGE, "{{- image_token -}}"])
def test_a_template_that_writes_it_is_refused(folder, written):
    file = folder / "own.jinja"
    file.write_text(read_template("gemma3") + written)
    with pytest.raises(ConfigError, match=rf"needs {ROWS + 1} rows \(the last for '{IMAGE}'\)"):
        build(folder, template=str(file))
    assert len(build(folder, rows=ROWS + 1, template=str(file))) == ROWS + 1


@pytest.mark.parametrize("role", ["bos_token", "eos_token", "pad_token", "unk_token"])
def test_one_with_a_part_in_every_text_is_refused(folder, role):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), role: IMAGE}))
    with pytest.raises(ConfigError, match=f"the last for '{IMAGE}'"):
        build(folder)


@pytest.mark.parametrize("special", [True, False])
def test_a_token_that_ends_texts_or_comes_from_texts_is_refused(folder, special):
    """A stop token by name, and an added token that is an ordinary word."""
    name = "<|eot_id|>" if special else "speech"
    tokenizer = build_byte_tokenizer("gemma3")
    tokenizer.add_tokens([AddedToken(name, special=special, normalized=False)], special_tokens=special)
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"take a smaller tokenizer, or a `model\.vocab_size` of 262 or more"):
        build(folder)


def test_the_advice_beside_a_checkpoint_is_its_own_tokenizer(folder):
    with pytest.raises(ConfigError, match=r"take the tokenizer and the chat template that belong to 'acme/small'"):
        build(folder, rows=ROWS - 1, pretrained="acme/small")
