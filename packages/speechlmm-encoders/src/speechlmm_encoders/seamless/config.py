"""Configuration of SeamlessM4T v2's speech encoder. Imports no torch.

16 kHz -> 6.25 Hz with the published numbers (filter banks at 50 Hz, then an adapter of stride 8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from speechlmm_encoders.architecture import Probability, Size, architecture_of
from speechlmm_encoders.fbank.config import ConformerArchitecture, FbankEncoderConfig

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.seamless.encoder import SeamlessEncoder


class SeamlessArchitecture(ConformerArchitecture):
    """The numbers of a speech encoder, called as in transformers' `SeamlessM4Tv2Config`; seamless-m4t-v2-large's."""

    model_types: ClassVar[tuple[str, ...]] = ("seamless_m4t_v2",)
    training_only: ClassVar[frozenset[str]] = frozenset(
        {"speech_encoder_dropout", "speech_encoder_layerdrop", "adaptor_dropout", "initializer_range"}
    )

    speech_encoder_layers: Size = 24
    """Conformer layers."""
    speech_encoder_attention_heads: Size = 16
    """Attention heads of a layer, and of an adapter's layer."""
    speech_encoder_intermediate_size: Size = 4096
    """Width of the feed-forward blocks."""
    speech_encoder_hidden_act: str = "swish"
    """Activation of the conformer layers, by its name in transformers."""
    speech_encoder_chunk_size: Size = 20_000
    """Frames of a chunk; frames attend to their own chunk and to those before it."""
    speech_encoder_left_chunk_num: int = 128
    """Chunks before its own that a frame attends to; negative for all."""
    add_adapter: bool = True
    """Whether the adapter follows; without it frames come out at 50 Hz."""
    adaptor_kernel_size: Size = 8
    """Kernel size of the adapter's convolutions."""
    adaptor_stride: Size = 8
    """Stride of the adapter's convolutions."""
    speech_encoder_dropout: Probability = 0.0
    """Dropout within the conformer layers."""
    speech_encoder_layerdrop: Probability = 0.1
    """Probability of leaving a conformer layer out at training (LayerDrop)."""
    adaptor_dropout: Probability = 0.1
    """Dropout within the adapter."""

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return self.speech_encoder_attention_heads

    @property
    def width(self) -> int:
        """Width D of the frames that come out."""
        return self.hidden_size

    @property
    def convolutions(self) -> tuple[tuple[int, int], ...]:
        """Kernel size and stride of each layer of the adapter; none without one."""
        return ((self.adaptor_kernel_size, self.adaptor_stride),) * (self.num_adapter_layers * self.add_adapter)


PUBLISHED = SeamlessArchitecture()


class SeamlessEncoderConfig(FbankEncoderConfig):
    """SeamlessM4T v2's speech encoder: audio at 16 kHz to frames at 6.25 Hz.

    `layer` counts conformer layers. Whichever state is chosen takes the place of the last one: the feed-forward block,
    the adapter and the norm follow, so that the frame rate does not depend on it.
    """

    unused_tensors: ClassVar[tuple[str, ...]] = (
        "text_encoder.",
        "text_decoder.",
        "t2u_model.",
        "vocoder.",
        "shared.",
        "lm_head.",
    )

    type: Literal["seamless"] = "seamless"
    model: SeamlessArchitecture | None = None
    """The architecture; null to take it from the checkpoint (or seamless-m4t-v2-large's, for random weights)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_architecture(cls, data: Any) -> Any:
        return architecture_of(data, SeamlessArchitecture)

    @property
    def architecture(self) -> SeamlessArchitecture:
        """The numbers in force."""
        return self.model or PUBLISHED

    @property
    def num_layers(self) -> int:
        """Conformer layers."""
        return self.architecture.speech_encoder_layers

    def build(self, ctx: BuildContext) -> SeamlessEncoder:
        """The module, randomly initialised."""
        from speechlmm_encoders.seamless.encoder import SeamlessEncoder

        return SeamlessEncoder(self, ctx)
