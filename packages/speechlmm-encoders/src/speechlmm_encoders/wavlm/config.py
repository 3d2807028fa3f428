"""Configuration of WavLM's encoder. Imports no torch.

16 kHz -> 50 Hz with the published strides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from speechlmm_encoders.architecture import Probability, Size, architecture_of
from speechlmm_encoders.raw_audio.config import RawAudioArchitecture, RawAudioEncoderConfig

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.wavlm.encoder import WavLMEncoder


class WavLMArchitecture(RawAudioArchitecture):
    """The numbers of a WavLM model, called as in transformers' `WavLMConfig`; by default wavlm-large's."""

    model_types: ClassVar[tuple[str, ...]] = ("wavlm",)
    unstated: ClassVar[dict[str, Any]] = {**RawAudioArchitecture.unstated, "activation_dropout": 0.1}

    conv_bias: bool = False
    """Whether the convolutions have biases."""
    activation_dropout: Probability = 0.0
    """Dropout within the feed-forward blocks."""
    num_buckets: Annotated[int, Field(ge=4)] = 320
    """Buckets of relative positions, half of them to each side."""
    max_bucket_distance: Size = 800
    """Distance in frames from which on positions share a bucket."""
    add_adapter: Literal[False] = False
    """Convolutions after the transformer; take `hf_audio` for a checkpoint that has them."""

    @model_validator(mode="after")
    def _check_buckets(self) -> WavLMArchitecture:
        if self.num_buckets % 4 or self.max_bucket_distance <= self.num_buckets // 4:
            raise ValueError(
                "num_buckets must be a multiple of 4, and max_bucket_distance more than a quarter of it, got "
                f"{self.num_buckets!r} and {self.max_bucket_distance!r}"
            )
        return self


PUBLISHED = WavLMArchitecture()


class WavLMEncoderConfig(RawAudioEncoderConfig):
    """WavLM: raw audio at 16 kHz to frames at 50 Hz."""

    type: Literal["wavlm"] = "wavlm"
    model: WavLMArchitecture | None = None
    """The architecture; null to take it from the checkpoint (or wavlm-large's, for random weights)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_architecture(cls, data: Any) -> Any:
        return architecture_of(data, WavLMArchitecture)

    @property
    def architecture(self) -> WavLMArchitecture:
        """The numbers in force."""
        return self.model or PUBLISHED

    def build(self, ctx: BuildContext) -> WavLMEncoder:
        """The module, randomly initialised."""
        from speechlmm_encoders.wavlm.encoder import WavLMEncoder

        return WavLMEncoder(self, ctx)
