"""Configuration of SeamlessM4T v2's speech encoder. Imports no torch.

16 kHz -> 6.25 Hz with the published numbers (filter banks at 50 Hz, then an adapter of stride 8).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from speechlmm_encoders.architecture import Architecture, Probability, Size, architecture_of
from speechlmm_encoders.fbank.config import STRIDE, FbankEncoderConfig

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.seamless.encoder import SeamlessEncoder


class SeamlessArchitecture(Architecture):
    """The numbers of a speech encoder, called as in transformers' `SeamlessM4Tv2Config`; seamless-m4t-v2-large's."""

    model_types: ClassVar[tuple[str, ...]] = ("seamless_m4t_v2",)
    training_only: ClassVar[frozenset[str]] = frozenset(
        {"speech_encoder_dropout", "speech_encoder_layerdrop", "adaptor_dropout", "initializer_range"}
    )

    hidden_size: Size = 1024
    """Width D of the frames."""
    feature_projection_input_dim: Annotated[int, Field(ge=2, multiple_of=STRIDE)] = 160
    """Width of the input: the mel bins of two frames."""
    speech_encoder_layers: Size = 24
    """Conformer layers."""
    speech_encoder_attention_heads: Size = 16
    """Attention heads of a layer, and of an adapter's layer."""
    speech_encoder_intermediate_size: Size = 4096
    """Width of the feed-forward blocks."""
    speech_encoder_hidden_act: str = "swish"
    """Activation of the conformer layers, by its name in transformers."""
    conv_depthwise_kernel_size: Annotated[int, Field(ge=1)] = 31
    """Kernel of the causal convolution in a conformer layer; odd."""
    position_embeddings_type: Literal["relative_key"] = "relative_key"
    """Positions: learned vectors for the distance from a query to a key."""
    left_max_position_embeddings: Size = 64
    """Distance to the left up to which positions are told apart."""
    right_max_position_embeddings: Size = 8
    """Distance to the right up to which positions are told apart."""
    speech_encoder_chunk_size: Size = 20_000
    """Frames of a chunk; frames attend to their own chunk and to those before it."""
    speech_encoder_left_chunk_num: int = 128
    """Chunks before its own that a frame attends to; negative for all."""
    add_adapter: bool = True
    """Whether the adapter follows; without it frames come out at 50 Hz."""
    num_adapter_layers: Size = 1
    """Layers of the adapter."""
    adaptor_kernel_size: Size = 8
    """Kernel of their convolutions."""
    adaptor_stride: Size = 8
    """Stride of their convolutions."""
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Epsilon of the layer norms before and after the conformer layers."""
    speech_encoder_dropout: Probability = 0.0
    """Dropout within the conformer layers."""
    speech_encoder_layerdrop: Probability = 0.1
    """Probability of leaving a conformer layer out at training (LayerDrop)."""
    adaptor_dropout: Probability = 0.1
    """Dropout within the adapter."""
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of random weights."""

    @model_validator(mode="after")
    def _check(self) -> SeamlessArchitecture:
        if self.hidden_size % self.speech_encoder_attention_heads:
            raise ValueError(
                "hidden_size must be a multiple of speech_encoder_attention_heads, got "
                f"{self.hidden_size!r} and {self.speech_encoder_attention_heads!r}"
            )
        if self.conv_depthwise_kernel_size % 2 == 0:
            raise ValueError(f"conv_depthwise_kernel_size must be odd, got {self.conv_depthwise_kernel_size!r}")
        return self


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

    @cached_property
    def architecture(self) -> SeamlessArchitecture:
        """The numbers in force."""
        return self.model or SeamlessArchitecture()

    @property
    def num_layers(self) -> int:
        """Conformer layers."""
        return self.architecture.speech_encoder_layers

    @property
    def hidden_size(self) -> int:
        """Width D of the frames."""
        return self.architecture.hidden_size

    @property
    def num_features(self) -> int:
        """Width of the encoder's input."""
        return self.architecture.feature_projection_input_dim

    @property
    def convolutions(self) -> tuple[tuple[int, int], ...]:
        """Kernel size and stride of each layer of the adapter."""
        numbers = self.architecture
        layers = numbers.num_adapter_layers if numbers.add_adapter else 0
        return ((numbers.adaptor_kernel_size, numbers.adaptor_stride),) * layers

    def build(self, ctx: BuildContext) -> SeamlessEncoder:
        """The module, randomly initialised."""
        from speechlmm_encoders.seamless.encoder import SeamlessEncoder

        return SeamlessEncoder(self, ctx)
