"""The inference engine: order, batch invariance, errors as results, streaming."""

from __future__ import annotations

import pytest

from speechlmm_core.chat.messages import Message
from speechlmm_core.errors import DataError
from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_core.inference.options import GenerationOptions, Request

OPTIONS = GenerationOptions(max_new_tokens=6)


@pytest.fixture
def engine(tiny_model, tiny_processor):
    return InferenceEngine(tiny_model, tiny_processor)


@pytest.fixture(scope="module")
def requests(conversation):
    lengths = [3_000, 20_000, 700, 9_000, 9_000, 15_000, 1_000]
    return [
        Request([Message.model_validate(conversation(n, "", seed=i)[0])], id=f"clip {i}") for i, n in enumerate(lengths)
    ]


def texts(results):
    return [(result.id, result.text, result.error) for result in results]


def test_answers_are_the_same_for_any_batch_size_and_order(engine, requests):
    expected = texts(engine.run(requests, options=OPTIONS, batch_size=1))
    assert [one[0] for one in expected] == [request.id for request in requests]
    for batch_size in (3, 16, "auto"):
        assert texts(engine.run(requests, options=OPTIONS, batch_size=batch_size, window=4)) == expected
    backwards = texts(engine.run(requests[::-1], options=OPTIONS, batch_size=3))
    assert backwards[::-1] == expected


def test_a_broken_request_is_its_own_result(engine, requests):
    broken = Request([Message(role="user", content=[{"type": "audio", "path": "/nowhere/a.wav"}])], id="broken")
    results = list(engine.run([requests[0], broken, requests[1]], options=OPTIONS, batch_size=2))
    assert [result.error is None for result in results] == [True, False, True]
    assert "/nowhere/a.wav" in results[1].error
    assert results[1].text is None
    assert results[0].duration == pytest.approx(3_000 / 16_000)


def test_results_come_as_soon_as_they_can(engine, requests):
    """A window is answered before the next one is read."""
    seen = []

    def source():
        for request in requests:
            seen.append(request.id)
            yield request

    first = next(iter(engine.run(source(), options=OPTIONS, batch_size=1, window=2)))
    assert first.id == requests[0].id
    assert len(seen) == 2


def test_streaming_gives_the_same_text(engine, requests):
    messages = requests[1].messages
    assert "".join(engine.stream(messages, OPTIONS)).strip() == engine.answer(messages, OPTIONS)


def test_closing_the_stream_stops_the_generation(engine, requests):
    stream = engine.stream(requests[1].messages, GenerationOptions(max_new_tokens=2_000))
    for _ in stream:
        break
    stream.close()  # joins the generating thread: without the stop it would go on for 2,000 tokens


def test_errors_of_a_stream_reach_the_caller(engine):
    with pytest.raises(DataError):
        list(engine.stream([{"role": "user", "content": [{"type": "video", "path": "x"}]}], OPTIONS))


def test_options_are_checked():
    with pytest.raises(ValueError, match="max_new_tokens"):
        GenerationOptions(max_new_tokens=0)
    assert GenerationOptions().kwargs()["do_sample"] is False
    assert GenerationOptions(temperature=0.2).kwargs()["temperature"] == 0.2
