"""Configuration of encoders of raw audio: convolutions under a transformer, as in wav2vec 2.0. Imports no torch.

16 kHz -> 50 Hz with the published strides.

Shapes: L samples, T frames, D hidden.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from speechlmm_core.chunking import Chunk
from speechlmm_core.lengths import Length, conv_output_length
from speechlmm_encoders.architecture import MASK_NUMBERS, MaskedArchitecture, Probability, Size
from speechlmm_encoders.layered import LayeredEncoderConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechlmm_encoders.raw_audio.preprocessor import RawAudioPreprocessor

Self = TypeVar("Self", bound="RawAudioArchitecture")


class RawAudioArchitecture(MaskedArchitecture):
    """The numbers that HuBERT and WavLM have in common, called as in transformers."""

    training_only: ClassVar[frozenset[str]] = frozenset(
        {
            "attention_dropout",
            "hidden_dropout",
            "activation_dropout",
            "feat_proj_dropout",
            "layerdrop",
            "initializer_range",
            *MASK_NUMBERS,
        }
    )
    unstated: ClassVar[dict[str, Any]] = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "do_stable_layer_norm": False,
        "feat_extract_norm": "group",
        "conv_bias": False,
        "feat_proj_dropout": 0.0,
    }

    hidden_size: Size = 1024
    """Width D of the frames."""
    num_hidden_layers: Size = 24
    """Transformer layers."""
    num_attention_heads: Size = 16
    """Attention heads of a layer."""
    intermediate_size: Size = 4096
    """Width of a layer's feed-forward block."""
    hidden_act: str = "gelu"
    """Activation of the feed-forward blocks, by its name in transformers."""
    do_stable_layer_norm: bool = True
    """Whether layers normalise their input (large models) rather than their output (base)."""
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Epsilon of the layer norms."""
    feat_extract_norm: Literal["layer", "group"] = "layer"
    """Norm of the convolutions: over channels after each (large), or over time after the first (base)."""
    feat_extract_activation: str = "gelu"
    """Activation of the convolutions, by its name in transformers."""
    conv_dim: tuple[Size, ...] = (512, 512, 512, 512, 512, 512, 512)
    """Widths of the convolutions."""
    conv_kernel: tuple[Size, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Their kernel sizes."""
    conv_stride: tuple[Size, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Their strides."""
    conv_bias: bool = True
    """Whether they have biases."""
    num_conv_pos_embeddings: Size = 128
    """Kernel of the convolution that encodes positions."""
    num_conv_pos_embedding_groups: Size = 16
    """Its groups."""
    attention_dropout: Probability = 0.1
    """Dropout of the attention weights."""
    hidden_dropout: Probability = 0.1
    """Dropout within the layers."""
    activation_dropout: Probability = 0.1
    """Dropout within the feed-forward blocks."""
    feat_proj_dropout: Probability = 0.1
    """Dropout after the projection of the convolutions' output."""
    layerdrop: Probability = 0.1
    """Probability of leaving a layer out at training (LayerDrop)."""
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of random weights."""

    @model_validator(mode="after")
    def _check(self: Self) -> Self:
        if not 0 < len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride):
            raise ValueError(
                "conv_dim, conv_kernel and conv_stride must be equally long, got "
                f"{len(self.conv_dim)}, {len(self.conv_kernel)} and {len(self.conv_stride)} entries"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size!r} and "
                f"{self.num_attention_heads!r}"
            )
        return self


class RawAudioEncoderConfig(LayeredEncoderConfig):
    """Base of the encoders of raw audio; a subclass has a field `model` with its own architecture's numbers."""

    unused_tensors: ClassVar[tuple[str, ...]] = (
        "lm_head.",
        "classifier.",
        "projector.",
        "layer_weights",
        "quantizer.",
        "project_q.",
        "project_hid.",
    )

    do_normalize: bool = True
    """Whether each clip is brought to zero mean and unit variance, as the checkpoint's feature extractor says."""
    apply_spec_augment: bool = False
    """Whether spans of frames are masked at training, by the architecture's `mask_*` numbers."""

    @property
    @abstractmethod
    def architecture(self) -> RawAudioArchitecture:
        """The numbers in force."""

    @property
    def num_layers(self) -> int:
        """Transformer layers."""
        return self.architecture.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """Width D of the frames."""
        return self.architecture.hidden_size

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return prod(self.architecture.conv_stride)

    def conv_lengths(self, num_samples: Length) -> list[Length]:
        """Lengths after each of the convolutions."""
        return conv_lengths(num_samples, self.architecture.conv_kernel, self.architecture.conv_stride)

    def output_lengths(self, num_samples: Length) -> Length:
        """Frames of so many samples; none for less than the convolutions' receptive field."""
        return self.conv_lengths(num_samples)[-1]

    def split(self, num_samples: int) -> list[Chunk]:
        """The chunks of a clip; the last has all samples that are left, for a norm over time sees them all.

        They are less than a hop more than its frames need, and so give no further frame.
        """
        *others, last = super().split(num_samples)
        return [*others, replace(last, end=num_samples)]

    def build_preprocessor(self) -> RawAudioPreprocessor:
        """Normalises and pads raw audio."""
        from speechlmm_encoders.raw_audio.preprocessor import RawAudioPreprocessor

        return RawAudioPreprocessor(self)


def conv_lengths(num_samples: Length, kernels: Sequence[int], strides: Sequence[int]) -> list[Length]:
    """Lengths after each of a stack of convolutions without padding."""
    lengths: list[Length] = []
    for kernel_size, stride in zip(kernels, strides, strict=True):
        num_samples = conv_output_length(num_samples, kernel_size=kernel_size, stride=stride)
        lengths.append(num_samples)
    return lengths
