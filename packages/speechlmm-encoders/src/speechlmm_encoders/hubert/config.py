"""Configuration of HuBERT's encoder. Imports no torch.

16 kHz -> 50 Hz with the published strides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from speechlmm_encoders.architecture import architecture_of
from speechlmm_encoders.raw_audio.config import RawAudioArchitecture, RawAudioEncoderConfig

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.hubert.encoder import HubertEncoder


class HubertArchitecture(RawAudioArchitecture):
    """The numbers of a HuBERT model, called as in transformers' `HubertConfig`; by default hubert-large-ls960-ft's."""

    model_types: ClassVar[tuple[str, ...]] = ("hubert",)

    feat_proj_layer_norm: bool = True
    """Whether the last convolution's output is layer-normalised."""
    conv_pos_batch_norm: Literal[False] = False
    """Batch norm before it; no encoder with it is supported, since it depends on the batch."""


PUBLISHED = HubertArchitecture()


class HubertEncoderConfig(RawAudioEncoderConfig):
    """HuBERT: raw audio at 16 kHz to frames at 50 Hz."""

    type: Literal["hubert"] = "hubert"
    model: HubertArchitecture | None = None
    """The architecture; null to take it from the checkpoint (or hubert-large-ls960-ft's, for random weights)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_architecture(cls, data: Any) -> Any:
        return architecture_of(data, HubertArchitecture)

    @property
    def architecture(self) -> HubertArchitecture:
        """The numbers in force."""
        return self.model or PUBLISHED

    def build(self, ctx: BuildContext) -> HubertEncoder:
        """The module, randomly initialised."""
        from speechlmm_encoders.hubert.encoder import HubertEncoder

        return HubertEncoder(self, ctx)
