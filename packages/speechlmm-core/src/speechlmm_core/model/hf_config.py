"""The thin Hugging Face configuration around a `ModelConfig`, so that the Auto classes know the model."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import CheckpointError


class SpeechLMMConfig(PreTrainedConfig):
    """What `config.json` holds: the model's own configuration, and where everything came from."""

    model_type = "speechlmm"

    model: dict[str, Any] | None = None
    """The `ModelConfig` as JSON: the single source of the model's shape."""
    versions: dict[str, Any] | None = None
    """Distributions and versions behind each component, written when the checkpoint was saved."""
    saved: str = "full"
    """`full`, or `trainable` where frozen bases are only referred to."""
    bases: dict[str, Any] | None = None
    """For `trainable`: the base checkpoint of each component that is not in the file, with its fingerprint."""
    tensors: list[str] | None = None
    """For `trainable`: the names of all tensors in the file, none of which may be missing."""
    adapters: list[dict[str, Any]] | None = None
    """The low-rank adapters, each with a folder under `adapters/`."""

    def parse(self) -> ModelConfig:
        """The typed model configuration.

        Raises:
            CheckpointError: The configuration holds none.
            pydantic.ValidationError: It does not fit the installed components.
        """
        if not self.model:
            raise CheckpointError("config.json holds no `model`; it was not written by SpeechLMM")
        return ModelConfig.model_validate(self.model)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The language model's own configuration, once a model was built from this one."""
        return self.__dict__.get("_text_config", self)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-serialisable data, without what is only known to a built model."""
        data = super().to_dict()
        data.pop("_text_config", None)
        return data


AutoConfig.register("speechlmm", SpeechLMMConfig, exist_ok=True)
