"""A tiny composite model of toy towers around a real tiny Llama, shared by the tests of the core."""

from __future__ import annotations

from typing import Any

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
