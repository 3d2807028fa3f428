"""What the engine reads ahead, how it batches, where it stops, and that it streams whole characters."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.chat.messages import Message
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.inference import engine as engine_module
from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_core.inference.options import GenerationOptions, Request
from speechlmm_core.inference.sizing import AUTO_FRAMES, AUTO_POSITIONS, AUTO_ROWS, Size, batches, measure
from speechlmm_core.inference.streaming import IncrementalDecoder

OPTIONS = GenerationOptions(max_new_tokens=5)

sizes = st.lists(st.tuples(st.integers(1, 6000), st.integers(0, 40_000)).map(lambda pair: Size(*pair)), max_size=60)


@pytest.fixture
def engine(tiny_model, tiny_processor):
    return InferenceEngine(tiny_model, tiny_processor)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    found: list[Path] = []
    for number, length in enumerate([9_000, 1_000, 22_050, 5_000, 7_777, 3_000]):
        found.append(tmp_path / f"{number}.wav")
        soundfile.write(found[-1], 0.1 * rng.standard_normal(length), 16_000 if number % 2 else 22_050)
    return found


def about(path, text="Write it down."):
    content = [{"type": "audio", "path": str(path)}, {"type": "text", "text": text}]
    return [Message.model_validate({"role": "user", "content": content})]


@given(sizes, st.one_of(st.integers(1, 9), st.just("auto")), st.one_of(st.none(), st.integers(1, 6000)))
def test_batches_hold_everything_once_within_the_budgets(found, batch_size, alone_from):
    plan = list(batches(list(enumerate(found)), batch_size, device="cpu", alone_from=alone_from))
    assert sorted(number for batch in plan for number in batch) == list(range(len(found)))
    for batch in plan:
        positions = max(found[number].positions for number in batch)
        frames = max(found[number].frames for number in batch)
        if batch_size != "auto":
            assert len(batch) <= batch_size
        elif len(batch) > 1:
            assert len(batch) * positions <= AUTO_POSITIONS["cpu"]
            assert len(batch) * frames <= AUTO_FRAMES["cpu"]
            assert len(batch) <= AUTO_ROWS["cpu"]
        if alone_from is not None and positions > alone_from:
            assert len(batch) == 1
    if isinstance(batch_size, int) and alone_from is None:
        assert len(plan) == math.ceil(len(found) / batch_size)


def test_sizes_from_headers_are_the_real_ones(engine, tiny_processor, files):
    for path in files:
        with mock.patch("speechlmm_core.media.audio.load_audio", side_effect=AssertionError("decoded")):
            size = measure(tiny_processor, about(path))
        assert size.positions == len(engine.prepare(about(path)).layout.input_ids)


def test_audio_is_loaded_one_batch_ahead_and_no_further(engine, files, monkeypatch):
    loaded: list[str] = []
    load = InferenceEngine._load

    def counted(self, request):
        loaded.append(request.id)
        return load(self, request)

    generated: list[int] = []
    generate = InferenceEngine._generate

    def watched(self, samples, options):
        answers = generate(self, samples, options)
        generated.append(len(samples))
        assert len(loaded) <= sum(generated) + 2, "more than the next batch has been read"
        return answers

    monkeypatch.setattr(InferenceEngine, "_load", counted)
    monkeypatch.setattr(InferenceEngine, "_generate", watched)
    requests = [Request(about(path), str(path)) for path in files]
    results = list(engine.run(requests, options=OPTIONS, batch_size=2))
    assert [result.id for result in results] == [str(path) for path in files]
    assert generated == [2, 2, 2]
    assert sorted(loaded) == sorted(map(str, files)), "each is read once"


def test_a_file_that_goes_away_in_between_is_its_own_error(engine, files, monkeypatch):
    measured = InferenceEngine._measure

    def then_delete(self, request):
        size = measured(self, request)
        if request.id == str(files[1]):
            files[1].unlink()
        return size

    monkeypatch.setattr(InferenceEngine, "_measure", then_delete)
    results = list(engine.run([Request(about(path), str(path)) for path in files], options=OPTIONS, batch_size=3))
    assert [result.error is None for result in results] == [True, False, True, True, True, True]
    assert "no such file" in results[1].error


def test_an_unexpected_error_of_one_request_does_not_end_the_run(engine, files, monkeypatch):
    load = InferenceEngine._load

    def broken(self, request):
        if request.id == 0:
            raise ZeroDivisionError("a decoder's\nbug")
        return load(self, request)

    monkeypatch.setattr(InferenceEngine, "_load", broken)
    results = list(engine.run([Request(about(path), i) for i, path in enumerate(files)], options=OPTIONS))
    assert results[0].error == "ZeroDivisionError: a decoder's bug"
    assert all(result.error is None for result in results[1:])


def test_answers_end_at_the_last_position_of_the_model(engine, tiny_model):
    most = tiny_model.text_decoder.model.config.max_position_embeddings
    own = len(engine.prepare([{"role": "user", "content": ""}]).layout.input_ids)
    lengths = [3, most - own - 2, most - own - 1, most - own, most]
    requests = [Request([Message.model_validate({"role": "user", "content": "x" * n})], n) for n in lengths]
    no_stop = mock.patch.object(engine.processor.tokenizer, "stop_token_ids", [])
    with no_stop:
        results = {result.id: result for result in engine.run(requests, options=OPTIONS, batch_size=5)}
    assert [results[n].num_tokens for n in lengths] == [5, 2, 1, 0, 0]
    for n in lengths[3:]:
        assert f"takes {own + n} positions, more than the language model has ({most}" in results[n].error
    with pytest.raises(DataError, match="positions"):
        engine.answer(requests[4].messages, OPTIONS)
    with pytest.raises(DataError, match="positions"):
        next(engine.stream(requests[4].messages, OPTIONS))


@pytest.mark.parametrize("exception", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_batch_that_does_not_fit_is_halved_down_to_the_culprit(engine, files, monkeypatch, exception):
    generate = InferenceEngine._generate
    longest = str(files[0])

    def limited(self, samples, options):
        if len(samples) > 2 or max(sample.duration_s for sample in samples) > 1:
            raise exception
        return generate(self, samples, options)

    monkeypatch.setattr(InferenceEngine, "_generate", limited)
    soundfile.write(longest, np.zeros(20_000), 16_000)
    results = list(engine.run([Request(about(path), str(path)) for path in files], options=OPTIONS, batch_size=6))
    assert [result.id for result in results if result.error] == [longest]
    assert "does not fit into memory" in results[0].error
    with pytest.raises(DataError, match="does not fit into memory"):
        engine.answer(about(longest), OPTIONS)


def test_other_faults_of_the_machine_are_not_hidden(engine, files, monkeypatch):
    monkeypatch.setattr(InferenceEngine, "_generate", mock.Mock(side_effect=RuntimeError("CUDA error: misaligned")))
    with pytest.raises(RuntimeError, match="misaligned"):
        list(engine.run([Request(about(files[0]))], options=OPTIONS))


@given(st.binary(max_size=40), st.text(max_size=20))
def test_streamed_pieces_are_the_decoded_whole(tiny_processor, noise, text):
    tokenizer = tiny_processor.tokenizer
    for ids in (tokenizer.encode(text), [*noise, *tokenizer.encode(text)]):
        decoder = IncrementalDecoder(tokenizer)
        pieces = [decoder.add(token) for token in ids]
        assert "".join(pieces) + decoder.rest() == tokenizer.decode(ids)
    decoder = IncrementalDecoder(tokenizer)
    assert [piece for token in tokenizer.encode("aü€😀") if (piece := decoder.add(token))] == ["a", "ü", "€", "😀"]


def test_transformers_has_nothing_to_warn_about(engine, files):
    """Not even where a base model's own generation settings do not go with greedy search."""
    own = engine.model.text_decoder.model.generation_config
    own.update(do_sample=True, temperature=0.6, top_p=0.9, top_k=5, max_length=20)
    said: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = said.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        answers = {engine.answer(about(files[0]), OPTIONS) for _ in range(3)}
        engine.answer(about(files[0]), GenerationOptions(max_new_tokens=3, temperature=0.5))
    finally:
        logger.removeHandler(handler)
    assert not said
    assert len(answers) == 1, "greedy all the same"


def test_beams_are_not_streamed(engine, files):
    with pytest.raises(ConfigError, match="num_beams=2"):
        next(engine.stream(about(files[0]), GenerationOptions(num_beams=2)))


def test_windows_share_one_pool(engine, files):
    with mock.patch.object(engine_module, "ThreadPoolExecutor", wraps=engine_module.ThreadPoolExecutor) as made:
        requests = [Request(about(path), i) for i, path in enumerate(files)]
        assert [one.id for one in engine.run(requests, options=OPTIONS, window=2)] == list(range(6))
    assert made.call_count == 1
