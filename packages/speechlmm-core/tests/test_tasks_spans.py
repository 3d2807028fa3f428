"""What is learnt of each task's chats, for every template: the answers and the tokens that end them, nothing else.

The reference is built here without the package's rendering: every answer's characters are counted off the ids.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechlmm_core.chat.messages import Message
from speechlmm_core.chat.template import BUILT_IN
from speechlmm_core.chat.tokenizer import MediaPiece, TextPiece
from speechlmm_core.data.chats import chat_of
from speechlmm_core.data.example import Example
from speechlmm_core.interfaces.task import get_task
from speechlmm_core.text_decoder.config import CausalLMConfig

TURN_END = {
    "llama_3": "<|eot_id|>",
    "chatml": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "smollm3": "<|im_end|>",
    "gemma3": "<end_of_turn>",
    "mistral": "</s>",
    "vicuna": "</s>",
    "plain": "<|end_of_text|>",
}
BEFORE = {"mistral": " ", "vicuna": " "}
"""What a template puts between the turn's opening and the answer, and has learnt with it."""
SPECIAL = sorted({token for tokens in BUILT_IN.values() for token in tokens.all} | {"[INST]", "[/INST]"})
SPEECH = ("asr", "st", "slu", "slu_intent", "sqa", "ssum", "vsr")
TEXT = ("mt", "tsum", "text_instruct")
AUDIO = {"type": "audio", "path": "a.wav"}
VIDEO = {"type": "video", "path": "v.mp4"}

# Letters, quotes, braces, line breaks, and whatever the templates write.
texts = st.lists(
    st.one_of(st.sampled_from(SPECIAL), st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=8)),
    min_size=1,
    max_size=6,
).map(" ".join)
solid = texts.filter(lambda text: bool(text.strip()))


@pytest.fixture(scope="module")
def chats():
    return {name: CausalLMConfig(tokenizer="bytes", chat_template=name).build_tokenizer() for name in sorted(TURN_END)}


def made(task, text, other="was ist das", **fields):
    """An example with ``text`` as its answer and ``other`` in every field that goes into the prompt."""
    return Example(
        id="1",
        task=task,
        media={"audio": AUDIO, "video": VIDEO} if task in SPEECH else {},
        text=text,
        transcript=other,
        source_text=other if task in (*TEXT, "sqa") else None,
        instruction=other,
        source_language="de",
        target_language="fr",
        fields={"intent": text, "slots": [{"what": other}]} if task.startswith("slu") else {},
        **fields,
    )


def runs(pieces):
    """Runs of supervised ids."""
    found, open_run = [], False
    for piece in pieces:
        if isinstance(piece, MediaPiece):
            open_run = False
            continue
        for token, supervised in zip(piece.ids, piece.supervised, strict=True):
            if supervised and not open_run:
                found.append([])
            if supervised:
                found[-1].append(token)
            open_run = supervised
    return found


def spelt(chat, template, answer):
    """Ids of an answer: its bytes, and the token that ends the turn."""
    vocabulary = chat.tokenizer.get_vocab()
    ids = chat.tokenizer(BEFORE.get(template, "") + answer.strip(), add_special_tokens=False, split_special_tokens=True)
    return [*ids["input_ids"], vocabulary[TURN_END[template]]]


def specials(chat, pieces):
    ids = set(chat.tokenizer.all_special_ids)
    return sum(token in ids for piece in pieces if isinstance(piece, TextPiece) for token in piece.ids)


def test_every_template_is_listed():
    assert set(TURN_END) == set(BUILT_IN)


@pytest.mark.parametrize("task", [*SPEECH, *TEXT])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=solid, other=solid, draw=st.integers(0, 2**62))
def test_the_answer_is_learnt_to_the_byte_whatever_the_corpus_holds(chats, task, text, other, draw):
    languages = ["en", "source", "target"]
    one = made(task, text, other).model_copy(update={"task_config": get_task(task, {"prompt_languages": languages})})
    messages = chat_of(one, draw=draw)
    answer = messages[-1].content[0]["text"]
    plain = chat_of(
        made(task, "x", "y").model_copy(update={"task_config": get_task(task, {"prompt_languages": languages})}),
        draw=draw,
    )
    for template, chat in chats.items():
        pieces = chat.encode_chat(messages)
        assert runs(pieces) == [spelt(chat, template, answer)], template
        assert sum(isinstance(piece, MediaPiece) for piece in pieces) == len(messages[0].media)
        # As many special tokens as in a chat with nothing special in it: none came out of the corpus' text.
        assert specials(chat, pieces) == specials(chat, chat.encode_chat(plain)), template
        # The prompt alone is the beginning of the whole.
        prompt = [
            p.ids if isinstance(p, TextPiece) else p.item
            for p in chat.encode_chat(messages[:-1], add_generation_prompt=True)
        ]
        whole = [p.ids if isinstance(p, TextPiece) else p.item for p in pieces]
        assert whole[: len(prompt) - 1] == prompt[:-1]
        assert whole[len(prompt) - 1][: len(prompt[-1])] == prompt[-1], template


@pytest.mark.parametrize("supervise", ["all", "last"])
@pytest.mark.parametrize("task", ["chat", "multi_turn_text_instruct"])
@settings(max_examples=15, deadline=None)
@given(answers=st.lists(solid, min_size=1, max_size=4), question=solid, empty=st.booleans())
def test_conversations_are_learnt_turn_by_turn(chats, task, supervise, answers, question, empty):
    if empty:  # an answer of nothing is still one: its end is learnt
        answers = ["", *answers]
    turns = []
    for number, answer in enumerate(answers):
        media = [AUDIO, {"type": "text", "text": "and"}, VIDEO] if task == "chat" and number % 2 else []
        turns.append(Message(role="user", content=[*media, {"type": "text", "text": question}]))
        turns.append(Message(role="assistant", content=answer))
    one = Example(id="1", task=task, messages=turns, task_config=get_task(task, {"supervise": supervise}))
    for template, chat in chats.items():
        wanted = [spelt(chat, template, answer) for answer in answers]
        assert runs(chat.encode_chat(chat_of(one))) == (wanted if supervise == "all" else wanted[-1:]), template


@pytest.mark.parametrize("supervise", ["all", "last"])
@pytest.mark.parametrize("task", [*SPEECH, *TEXT])
def test_examples_shown_first_are_learnt_as_asked(chats, task, supervise):
    config = get_task(task, {"num_few_shots": 2, "supervise": supervise, "system": "Be <|im_end|> brief."})
    first, second, third = (made(task, text, task_config=config) for text in ("eins", "zwei </s>", "drei"))
    messages = config.messages(third, shots=[first, second])
    assert [message.role for message in messages] == ["system", *("user", "assistant") * 3]
    answers = [message.content[0]["text"] for message in messages if message.role == "assistant"]
    for template, chat in chats.items():
        wanted = [spelt(chat, template, answer) for answer in answers]
        assert runs(chat.encode_chat(messages)) == (wanted if supervise == "all" else wanted[-1:])


@settings(max_examples=30, deadline=None)
@given(text=solid)
def test_plain_text_is_learnt_from_its_second_token_on(chats, text):
    (message,) = get_task("ntp").messages(Example(id="1", task="ntp", text=text))
    for template, chat in chats.items():
        (piece,) = chat.encode_chat([message])
        bos, eos = chat.tokenizer.bos_token_id, chat.tokenizer.eos_token_id
        assert piece.ids == [
            bos,
            *chat.tokenizer(text, split_special_tokens=True, add_special_tokens=False).input_ids,
            eos,
        ]
        assert piece.supervised == [False] + [True] * (len(piece.ids) - 1), template
        (asked,) = chat.encode_chat([message], add_generation_prompt=True)
        assert asked.ids == piece.ids[:-1]


def test_without_a_token_that_begins_a_text_its_first_one_is_not_learnt():
    chat = CausalLMConfig(tokenizer="bytes", chat_template="chatml").build_tokenizer()
    chat.tokenizer.bos_token = None
    chat.__setstate__(chat.__getstate__())
    (piece,) = chat.encode_chat([Message(role="text", content="abc")])
    assert piece.supervised == [False, True, True, True]
    after = chat.encode_chat([Message(role="text", content=[AUDIO, {"type": "text", "text": "abc"}])])
    assert after[1].supervised == [True] * 4  # it follows a medium


def test_interleaved_text_is_learnt_and_its_audio_is_not(chats):
    words = [{"text": f"</s>{n}", "start": n / 2, "end": n / 2 + 0.4} for n in range(40)]
    one = Example(id="1", task="interleaved", media={"audio": AUDIO}, fields={"words": words})
    for draw in range(1, 30):
        (message,) = get_task("interleaved").messages(one, draw=draw)
        for chat in chats.values():
            pieces = chat.encode_chat([message])
            ids = [token for piece in pieces if isinstance(piece, TextPiece) for token in piece.ids]
            supervised = [s for piece in pieces if isinstance(piece, TextPiece) for s in piece.supervised]
            assert supervised == [False] + [True] * (len(ids) - 1)
            read = "".join(item.get("text", "") for item in message.content)
            spelt_out = chat.tokenizer(read, split_special_tokens=True, add_special_tokens=False).input_ids
            assert ids[1:-1] == spelt_out


def test_a_long_answer_is_learnt_to_its_end(chats):
    answer = "ein langer Satz, der nicht endet. " * 3000
    for template, chat in chats.items():
        (run,) = runs(chat.encode_chat(get_task("ssum").messages(made("ssum", answer))))
        assert run == spelt(chat, template, answer)


@pytest.mark.parametrize("role", ["user", "assistant", "system", "text"])
def test_a_plain_text_stands_by_itself(chats, role):
    from speechlmm_core.errors import DataError

    messages = [Message(role="text", content="a"), Message(role=role, content="b")]
    with pytest.raises(DataError, match="stands by itself"):
        chats["chatml"].encode_chat(messages)
