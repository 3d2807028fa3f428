"""Planned lengths are bounds: whatever is drawn, no chat takes more of a model than was planned for it."""

from itertools import pairwise

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from speechlmm_core.chat.template import BUILT_IN, read_template
from speechlmm_core.chat.tokenizer import ChatTokenizer, TextPiece
from speechlmm_core.data.chats import chat_of, draws_of
from speechlmm_core.data.draw import draw
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ListExamples
from speechlmm_core.data.lengths import measure
from speechlmm_core.data.spec.task_examples import TaskExamples
from speechlmm_core.interfaces.task import get_task
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.tasks.interleaved.spans import Word, cut

RATE = 16_000


@pytest.fixture(scope="module")
def processor(tiny_config):
    return SpeechLMMProcessor.from_config(tiny_config)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("bounds") / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, 12 * RATE), RATE)
    return str(path)


def spoken(recording, number, task, config=None, **fields):
    item = {"type": "audio", "path": recording, "start": 0.1 * number, "end": 0.5 + 0.37 * number}
    return Example(id=str(number), task=task, task_config=config, media={"audio": item}, text="la " * number, **fields)


def taken(processor, messages):
    layout = processor.sample(messages, with_answer=True).layout
    return layout.num_positions, int((layout.medium >= 0).sum())


@given(
    st.lists(st.floats(0, 1, allow_nan=False), max_size=80),
    st.lists(st.integers(5, 15), min_size=20, max_size=20),
    st.booleans(),
)
def test_cutting_keeps_the_words_in_order(times, sizes, is_heard):
    ends = np.cumsum(np.asarray(times)) if times else []
    starts = [0.0, *ends[:-1]] if len(ends) else []
    words = [Word(f"w{i}", float(a), float(b)) for i, (a, b) in enumerate(zip(starts, ends, strict=True))]
    spans = cut(words, iter(sizes), is_heard=is_heard, shortest=5)
    assert [word for span in spans for word in span.words] == words
    assert all(a.is_heard != b.is_heard for a, b in pairwise(spans))
    heard = [span for span in spans if span.is_heard]
    assert all(5 <= len(span.words) <= 15 and span.words[-1].end > span.words[0].start for span in heard)
    assert not words or any(not span.is_heard for span in spans)


def test_spans_vary_with_the_draw_and_hold_five_to_fifteen_words(recording):
    words = [{"word": f"w{n}", "start": 1 + n / 10, "end": 1 + n / 10 + 0.09} for n in range(90)]
    item = {"type": "audio", "path": recording, "start": 1.02, "end": 9.93}
    one = Example(id="1", task="interleaved", media={"audio": item}, fields={"words": words})
    seen = set()
    for number in range(1, 300):
        (message,) = chat_of(one, draw=number)
        seen |= {len(item["transcript"].split()) for item in message.media}
        for item in message.media:
            first, last = (int(word[1:]) for word in item["transcript"].split()[:: len(item["transcript"].split()) - 1])
            assert item["start"] == pytest.approx(max(1.02, 1 + first / 10))  # the file's time, within the medium
            assert item["end"] == pytest.approx(min(9.93, 1 + last / 10 + 0.09))
    assert seen == set(range(5, 16))


def test_interleaved_text_takes_no_more_than_planned(processor, recording, tmp_path):
    rng = np.random.default_rng(1)
    examples = []
    for number in range(8):
        ends = np.cumsum(rng.uniform(0.02, 0.25, rng.integers(1, 45)))
        words = [
            {"text": "w" * int(rng.integers(1, 9)), "start": float(a), "end": float(b)}
            for a, b in zip([0, *ends[:-1]], ends - 0.01, strict=True)
        ]
        item = {"type": "audio", "path": recording}
        examples.append(Example(id=str(number), task="interleaved", media={"audio": item}, fields={"words": words}))
    lengths = measure(ListExamples(examples), processor, cache=tmp_path)
    for index, one in enumerate(examples):
        for number in range(1, 60):
            positions, _ = taken(processor, chat_of(one, draw=number))
            assert positions <= lengths.positions[index]
    last = [one.fields["words"][-1]["end"] for one in examples]
    assert lengths.seconds == pytest.approx(last, abs=1e-3)  # each second of audio once


@pytest.mark.parametrize("task", ["asr", "slu", "sqa", "st"])
def test_chats_with_examples_shown_first_take_no_more_than_planned(processor, recording, tmp_path, task):
    config = get_task(task, {"num_few_shots": 2, "prompt_languages": ["en", "source", "target"], "system": "Be brief."})
    own = {"fields": {"intent": "greet"}, "source_language": "de", "target_language": "it"}
    examples = [
        spoken(recording, number, task, **own, instruction="who?" if number % 2 else None) for number in range(1, 12)
    ]
    data = TaskExamples(ListExamples(examples), range(len(examples)), task=config)
    lengths = measure(data, processor, cache=tmp_path)
    for epoch in range(6):
        for index in range(len(data)):
            positions, _ = taken(processor, data.chat(index, draw=draw(5, epoch, index)))
            assert positions <= lengths.positions[index]


@pytest.fixture(scope="module")
def merging():
    """A byte-pair tokenizer that has learnt to merge letters, spaces and line breaks."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    corpus = [line for task in ("tsum", "mt", "text_instruct") for line in get_task(task).prompts()] * 5
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(corpus, trainer)
    names = BUILT_IN["chatml"]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in names.all])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=names.bos, eos_token=names.eos)
    return ChatTokenizer(fast, read_template("chatml"), "chatml")


@pytest.mark.parametrize("task", ["tsum", "mt", "text_instruct"])
@settings(max_examples=40, deadline=None)
@given(
    text=st.text(st.sampled_from("the text: \n.,'1 é"), min_size=1, max_size=20).filter(lambda one: bool(one.strip()))
)
def test_the_longest_wording_of_one_text_is_enough_for_another(merging, task, text):
    def size(one, number):
        pieces = merging.encode_chat(chat_of(one, draw=number))
        return sum(len(piece.ids) for piece in pieces if isinstance(piece, TextPiece))

    pair = {"source_language": "de", "target_language": "fr"}
    first, second = (
        Example(id="1", task=task, source_text=one, instruction=one, text="x", **pair)
        for one in ("A plain text.", text)
    )
    longest = max(draws_of(first), key=lambda number: size(first, number))
    planned = size(second, longest) + get_task(task).slack
    assert max(size(second, number) for number in draws_of(second)) <= planned
