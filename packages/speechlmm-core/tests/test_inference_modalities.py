"""Generation and the inference engine with video, and with media of which no frame comes out."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Literal

import numpy as np
import pytest
import torch

from speechlmm_core.chat.messages import Message
from speechlmm_core.features import Features
from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_core.inference.options import GenerationOptions, Request
from speechlmm_core.inference.sizing import measure
from speechlmm_core.interfaces.modules import Adapter
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.testing.composite import new_model, tiny_model_config
from speechlmm_core.testing.toy import ToyAdapterConfig, ToyEncoderConfig
from speechlmm_core.testing.toy_video import ToyVideoEncoderConfig

OPTIONS = GenerationOptions(max_new_tokens=6)


class BrightFrames(Adapter):
    """Keeps the frames above a threshold; in training, and in silence, there may be none."""

    def __init__(self, config, ctx):
        super().__init__()
        self.config = config
        self.model = torch.nn.Linear(ctx.input_size, ctx.output_size)

    def forward(self, features, target_lengths=None):
        loud = features.values.abs().mean(2) > self.config.threshold  # (B, T)
        keep = loud & features.mask()
        order = keep.int().argsort(dim=1, descending=True, stable=True)
        values = self.model(features.values).gather(1, order[..., None].expand(-1, -1, self.model.out_features))
        lengths = keep.sum(1)
        return Features(values[:, : int(lengths.max()) if len(lengths) else 0], lengths)


class BrightFramesConfig(ToyAdapterConfig):
    type: Literal["test.bright"] = "test.bright"
    threshold: float = 1e9

    def output_lengths(self, num_frames, frame_rate):
        return None

    def build(self, ctx):
        return BrightFrames(self, ctx)


def engine_of(stack: ExitStack, towers) -> InferenceEngine:
    config = stack.enter_context(tiny_model_config(towers))
    model = new_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)  # answers that differ from medium to medium
    return InferenceEngine(model, SpeechLMMProcessor.from_config(config))


@pytest.fixture(scope="module")
def engine():
    towers = {
        "audio_encoder": ToyEncoderConfig(),
        "audio_adapter": ToyAdapterConfig(),
        "video_encoder": ToyVideoEncoderConfig(),
        "video_adapter": ToyAdapterConfig(),
    }
    with ExitStack() as stack:
        yield engine_of(stack, towers)


def video(frames: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return {"type": "video", "array": rng.integers(0, 256, (frames, 16, 16), np.uint8), "sampling_rate": 25}


def audio(frames: int, seed: int = 0):
    noise = 0.1 * np.random.default_rng(seed).standard_normal(320 * frames)
    return {"type": "audio", "array": noise.astype(np.float32), "sampling_rate": 16_000}


def ask(*media):
    return [Message(role="user", content=[*media, {"type": "text", "text": "What?"}])]


REQUESTS = [
    ask(video(30, 1)),
    ask(audio(20, 2)),
    ask(video(9, 3), audio(31, 4)),
    ask(),
    ask(audio(12, 5), video(44, 6)),
    ask(video(1, 7)),
]


def texts(results):
    return [(result.id, result.text, result.error) for result in results]


def test_video_audio_and_text_are_answered_alike_in_any_batch(engine):
    requests = [Request(messages, number) for number, messages in enumerate(REQUESTS)]
    expected = texts(engine.run(requests, options=OPTIONS, batch_size=1))
    assert [error for _, _, error in expected] == [None] * len(requests)
    assert len({text for _, text, _ in expected}) > 3, "the media must not all look the same to the model"
    for batch_size in (2, "auto"):
        assert texts(engine.run(requests, options=OPTIONS, batch_size=batch_size)) == expected
    results = list(engine.run(requests, options=OPTIONS))
    assert [round(one.duration, 3) for one in results] == [1.2, 0.4, 0.98, 0, 2.0, 0.04]


def test_video_is_measured_as_it_is_loaded(engine):
    for messages in REQUESTS:
        sample = engine.prepare(messages)
        size = measure(engine.processor, messages)
        assert size.positions == sample.layout.num_positions
        assert size.frames == sum(sample.layout.num_frames)


def test_a_video_is_streamed(engine):
    assert "".join(engine.stream(REQUESTS[0], OPTIONS)).strip() == engine.answer(REQUESTS[0], OPTIONS)


@pytest.fixture(scope="module")
def silent():
    """Nothing comes out of the audio adapter, and of the video adapter only what is bright."""
    towers = {
        "audio_encoder": ToyEncoderConfig(),
        "audio_adapter": BrightFramesConfig(),
        "video_encoder": ToyVideoEncoderConfig(),
        "video_adapter": BrightFramesConfig(threshold=0.0),
    }
    with ExitStack() as stack:
        yield engine_of(stack, towers)


def test_media_of_which_nothing_comes_out_are_as_if_they_were_not_there(silent):
    """A batch may hold such media alone, or beside others; what is left of the chat is answered."""
    nothing = silent.answer(ask(), OPTIONS)
    assert silent.answer(ask(audio(20)), OPTIONS) == nothing
    assert "".join(silent.stream(ask(audio(7)), OPTIONS)).strip() == nothing
    seen = silent.answer(ask(video(12, 3)), OPTIONS)
    assert seen != nothing
    requests = [ask(audio(20)), ask(video(12, 3)), ask(audio(9), video(12, 3)), ask()]
    for batch_size in (1, 4):
        results = silent.run([Request(one) for one in requests], options=OPTIONS, batch_size=batch_size)
        assert [result.text for result in results] == [nothing, seen, seen, nothing]


@pytest.mark.parametrize("packed", [False, True])
def test_training_goes_on_where_nothing_comes_out(silent, packed):
    answer = Message(role="assistant", content=[{"type": "text", "text": "yes"}])
    chats = [[*ask(audio(20)), answer], [*ask(audio(9), video(12, 3)), answer], [*ask(), answer]]
    batches = [
        silent.processor.collate([silent.processor.sample(chat, with_answer=True) for chat in one], packed=packed)
        for one in (chats, chats[:1], chats[2:])
    ]
    together, alone, text = (silent.model(**batch) for batch in batches)
    torch.testing.assert_close(alone.losses["lm"].sum, text.losses["lm"].sum, rtol=1e-5, atol=1e-5)
    assert bool(together.loss.isfinite())
    together.loss.backward()
    silent.model.zero_grad()
