"""A tiny composite model of toy towers around a real tiny Llama, shared by the tests of the core."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from speechlmm_core.config import ModelConfig
from speechlmm_core.interfaces.adapter import adapters
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.testing.toy import ToyAdapterConfig, ToyEncoderConfig

TINY_LLAMA = {
    "type": "causal_lm",
    "model": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
    },
    "tokenizer": "bytes",
    "chat_template": "chatml",
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_types() -> tuple[str, str]:
    """Names of the toy encoder and adapter, registered."""
    for registry, cls in ((encoders, ToyEncoderConfig), (adapters, ToyAdapterConfig)):
        if cls.model_fields["type"].default not in registry.names():
            registry.register(cls)
    return ToyEncoderConfig().type, ToyAdapterConfig().type


@pytest.fixture(scope="session")
def tiny_config(toy_types: tuple[str, str]) -> ModelConfig:
    """Two inputs (`audio`, `speaker`), a tiny Llama, and CTC on the audio encoder."""
    encoder, adapter = toy_types
    return ModelConfig.model_validate(
        {
            "audio_encoder": {"type": encoder, "width": 24},
            "audio_adapter": {"type": adapter},
            "speaker_encoder": {"type": encoder, "width": 16},
            "speaker_adapter": {"type": adapter},
            "text_decoder": TINY_LLAMA,
            "objectives": {"ctc": {"type": "ctc", "stage": "audio_encoder"}},
        }
    )


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> SpeechLMM:
    """A fresh model, the same for every test."""
    torch.manual_seed(0)
    return SpeechLMM.from_model_config(tiny_config).eval()


@pytest.fixture(scope="session")
def tiny_processor(tiny_config: ModelConfig) -> SpeechLMMProcessor:
    """Its processor."""
    return SpeechLMMProcessor.from_config(tiny_config)


@pytest.fixture(scope="session")
def conversation() -> Any:
    """Makes a conversation with noise of so many samples as its audio."""

    def make(num_samples: int, text: str, *, seed: int = 0, speaker: int = 0) -> list[dict[str, Any]]:
        rng = np.random.default_rng([seed, num_samples])

        def audio(kind: str, length: int, **more: Any) -> dict[str, Any]:
            samples = (0.1 * rng.standard_normal(length)).astype(np.float32)
            return {"type": kind, "array": samples, "sampling_rate": 16_000, **more}

        content = [audio("audio", num_samples, transcript=text), {"type": "text", "text": "Write it down."}]
        if speaker:
            content.insert(0, audio("speaker", speaker))
        return [{"role": "user", "content": content}, {"role": "assistant", "content": text}]

    return make


def numbered_frame(number: int, height: int, width: int) -> np.ndarray:
    """A frame (height, width, 3) with its number in it: eight bands, white where a binary digit is one."""
    bands = np.array([255 * (number >> bit & 1) for bit in range(8)], np.uint8)
    rows = bands[np.arange(height) * 8 // height]
    return np.repeat(np.repeat(rows[:, None, None], width, axis=1), 3, axis=2)


@pytest.fixture(scope="session")
def frame_numbers() -> Any:
    """Reads the numbers of grey frames (T, H, W) of a video that `write_video` wrote."""

    def read(frames: torch.Tensor) -> list[int]:
        middles = (torch.arange(8) * 2 + 1) * frames.shape[1] // 16
        white = frames[:, middles].float().mean(dim=2) > 127  # (T, 8)
        return (white * 2 ** torch.arange(8)).sum(1).tolist()

    return read


@pytest.fixture(scope="session")
def write_video() -> Any:
    """Writes a video of numbered frames, or of given ones; the container follows from the name."""

    def write(
        path: Path,
        frames: int | list[np.ndarray] = 25,
        *,
        rate: int = 25,
        codec: str = "libx264",
        size: tuple[int, int] = (96, 96),
        times_ms: Any = None,
        rotation: int = 0,
        sound_s: float = 0.0,
        container: dict[str, str] | None = None,
        **options: str,
    ) -> Path:
        if isinstance(frames, int):
            frames = [numbered_frame(number, *size) for number in range(frames)]
        with av.open(str(path), "w", options=container or {}) as file:
            stream = file.add_stream(codec, rate=rate, options=options)
            stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
            if times_ms is not None:
                stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
            if rotation:
                stream.set_display_rotation(rotation)
            sound = file.add_stream("aac", rate=16_000) if sound_s else None
            for number, values in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format="rgb24")
                if times_ms is not None:
                    frame.pts, frame.time_base = int(times_ms[number]), Fraction(1, 1000)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
            if sound is not None:
                silence = np.zeros((1, round(sound_s * 16_000)), np.float32)
                part = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
                part.sample_rate = 16_000
                file.mux(sound.encode(part))
                file.mux(sound.encode())
        return path

    return write
