"""The model that samples are shown for: a saved one, that of a configuration, or a stand-in. Imports torch late."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.config import ModelConfig
from speechlmm_core.interfaces.adapter import adapters
from speechlmm_core.interfaces.encoder import EncoderConfig, encoders

if TYPE_CHECKING:
    from speechlmm_core.processor.processor import SpeechLMMProcessor

ENCODERS = {"video": "auto_avsr"}
OTHER = "whisper_unrestricted"
"""Encoder of the inputs that are no video."""


def processor_of(model_path: Path | None, config: ModelConfig | None, inputs: Iterable[str]) -> SpeechLMMProcessor:
    """The processor that makes the samples.

    Args:
        model_path: Folder of a saved model.
        config: The model of a configuration, in place of a saved one.
        inputs: Inputs that the data name; a stand-in is made for these.

    Raises:
        CheckpointError: There is no model in the folder.
    """
    from speechlmm_core.processor.processor import SpeechLMMProcessor

    if model_path is not None:
        return SpeechLMMProcessor.from_pretrained(model_path)
    return SpeechLMMProcessor.from_config(config if config is not None else stand_in(inputs))


def stand_in(inputs: Iterable[str]) -> ModelConfig:
    """A model without weights: bytes as tokens, and an encoder and an adapter for each input."""
    towers: dict[str, Any] = {}
    for name in inputs:
        towers[f"{name}_encoder"] = _encoder(name)
        towers[f"{name}_adapter"] = {"type": "mlp"} if "mlp" in adapters.names() else _toy_adapter()
    decoder = {"type": "causal_lm", "tokenizer": "bytes", "chat_template": "chatml"}
    return ModelConfig.model_validate({**towers, "text_decoder": decoder})


def _encoder(name: str) -> EncoderConfig:
    wanted = ENCODERS.get(name, OTHER)
    if wanted in encoders.names():
        return encoders.validate({"type": wanted})
    # The plugins with real encoders need not be installed; core has a plain one of its own.
    if name == "video":
        from speechlmm_core.testing.toy_video import ToyVideoEncoderConfig

        return ToyVideoEncoderConfig()
    from speechlmm_core.testing.toy import ToyEncoderConfig

    return ToyEncoderConfig()


def _toy_adapter() -> Any:
    from speechlmm_core.testing.toy import ToyAdapterConfig

    return ToyAdapterConfig()
