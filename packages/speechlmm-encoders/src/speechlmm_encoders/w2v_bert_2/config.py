"""Configuration of w2v-BERT 2.0's encoder. Imports no torch.

16 kHz -> 50 Hz with the published numbers (filter banks at 50 Hz, no adapter).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import model_validator

from speechlmm_encoders.architecture import MASK_NUMBERS, MaskedArchitecture, Probability, Size, architecture_of
from speechlmm_encoders.fbank.config import ConformerArchitecture, FbankEncoderConfig

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.w2v_bert_2.encoder import W2vBert2Encoder


class W2vBert2Architecture(ConformerArchitecture, MaskedArchitecture):
    """The numbers of a w2v-BERT model, called as in transformers' `Wav2Vec2BertConfig`; by default w2v-bert-2.0's."""

    model_types: ClassVar[tuple[str, ...]] = ("wav2vec2-bert",)
    training_only: ClassVar[frozenset[str]] = frozenset(
        {
            "attention_dropout",
            "hidden_dropout",
            "activation_dropout",
            "feat_proj_dropout",
            "conformer_conv_dropout",
            "layerdrop",
            "initializer_range",
            *MASK_NUMBERS,
        }
    )

    num_hidden_layers: Size = 24
    """Conformer layers."""
    num_attention_heads: Size = 16
    """Attention heads of a layer."""
    intermediate_size: Size = 4096
    """Width of the feed-forward blocks."""
    hidden_act: str = "swish"
    """Activation of the conformer layers, by its name in transformers."""
    add_adapter: bool = False
    """Whether an adapter of strided convolutions follows."""
    adapter_kernel_size: Size = 3
    """Kernel size of the adapter's convolutions."""
    adapter_stride: Size = 2
    """Stride of the adapter's convolutions."""
    adapter_act: str = "relu"
    """Activation of the adapter's feed-forward blocks."""
    output_hidden_size: Size = 1024
    """Width D of the frames behind an adapter; `hidden_size` where it is left out."""
    use_intermediate_ffn_before_adapter: bool = False
    """Whether a feed-forward block stands before the adapter."""
    attention_dropout: Probability = 0.0
    """Dropout of the attention weights and of the attention's output."""
    hidden_dropout: Probability = 0.0
    """Dropout within the layers."""
    activation_dropout: Probability = 0.0
    """Dropout within the feed-forward blocks."""
    feat_proj_dropout: Probability = 0.0
    """Dropout after the projection of the input."""
    conformer_conv_dropout: Probability = 0.1
    """Dropout after the convolutions."""
    layerdrop: Probability = 0.1
    """Probability of leaving a conformer layer out at training (LayerDrop)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_width(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        numbers = cast("dict[str, Any]", data)
        if numbers.get("output_hidden_size") is not None:
            return numbers
        return {**numbers, "output_hidden_size": numbers.get("hidden_size", 1024)}

    @model_validator(mode="after")
    def _check_adapter(self) -> W2vBert2Architecture:
        if self.use_intermediate_ffn_before_adapter and not self.add_adapter:
            raise ValueError("use_intermediate_ffn_before_adapter needs add_adapter; set both or neither")
        return self

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return self.num_attention_heads

    @property
    def width(self) -> int:
        """Width D of the frames that come out."""
        return self.output_hidden_size if self.add_adapter else self.hidden_size

    @property
    def convolutions(self) -> tuple[tuple[int, int], ...]:
        """Kernel size and stride of each layer of the adapter; none without one."""
        return ((self.adapter_kernel_size, self.adapter_stride),) * (self.num_adapter_layers * self.add_adapter)


PUBLISHED = W2vBert2Architecture()


class W2vBert2EncoderConfig(FbankEncoderConfig):
    """w2v-BERT 2.0: audio at 16 kHz to frames at 50 Hz.

    `layer` counts conformer layers; where there is an adapter it follows whichever state is chosen.
    """

    unused_tensors: ClassVar[tuple[str, ...]] = ("lm_head.", "classifier.", "projector.", "layer_weights")

    type: Literal["w2v_bert_2"] = "w2v_bert_2"
    model: W2vBert2Architecture | None = None
    """The architecture; null to take it from the checkpoint (or w2v-bert-2.0's, for random weights)."""
    apply_spec_augment: bool = False
    """Whether spans of frames are masked at training, by the architecture's `mask_*` numbers."""

    @model_validator(mode="before")
    @classmethod
    def _fill_architecture(cls, data: Any) -> Any:
        return architecture_of(data, W2vBert2Architecture)

    @property
    def architecture(self) -> W2vBert2Architecture:
        """The numbers in force."""
        return self.model or PUBLISHED

    @property
    def num_layers(self) -> int:
        """Conformer layers."""
        return self.architecture.num_hidden_layers

    def build(self, ctx: BuildContext) -> W2vBert2Encoder:
        """The module, randomly initialised."""
        from speechlmm_encoders.w2v_bert_2.encoder import W2vBert2Encoder

        return W2vBert2Encoder(self, ctx)
