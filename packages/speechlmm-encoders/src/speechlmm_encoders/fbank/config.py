"""What the configurations of encoders over filter-bank features have in common. Imports no torch.

16 kHz -> filter banks at 100 Hz -> pairs of them at 50 Hz -> the adapter's convolutions.

Shapes: L samples, T frames.
"""

from __future__ import annotations

from abc import abstractmethod
from math import prod
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from speechlmm_core.chunking import Chunker
from speechlmm_core.lengths import Length, conv_output_length
from speechlmm_encoders.architecture import Architecture, Size
from speechlmm_encoders.layered import LayeredEncoderConfig

if TYPE_CHECKING:
    from speechlmm_encoders.fbank.preprocessor import FbankPreprocessor

FRAME_LENGTH = 400
"""Samples in the window of a filter-bank frame."""
HOP_LENGTH = 160
"""Samples between two filter-bank frames."""
STRIDE = 2
"""Filter-bank frames that are put together into one frame of the encoder."""


Self = TypeVar("Self", bound="ConformerArchitecture")


class ConformerArchitecture(Architecture):
    """The numbers that the conformer encoders of transformers call by the same names."""

    hidden_size: Size = 1024
    """Width of the conformer layers."""
    feature_projection_input_dim: Annotated[int, Field(ge=2, multiple_of=STRIDE)] = 160
    """Width of the input: the mel bins of two frames."""
    conv_depthwise_kernel_size: Annotated[int, Field(ge=1)] = 31
    """Kernel of the causal convolution in a conformer layer; odd."""
    position_embeddings_type: Literal["relative_key"] = "relative_key"
    """Positions: learned vectors for the distance from a query to a key."""
    left_max_position_embeddings: Size = 64
    """Distance to the left up to which positions are told apart."""
    right_max_position_embeddings: Size = 8
    """Distance to the right up to which positions are told apart."""
    num_adapter_layers: Size = 1
    """Layers of the adapter, where there is one."""
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Epsilon of the layer norms."""
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of random weights."""

    @model_validator(mode="after")
    def _check(self: Self) -> Self:
        for width in (self.hidden_size, self.width):
            if width % self.num_heads:
                raise ValueError(
                    f"widths must be multiples of the number of attention heads, got {width!r} and {self.num_heads!r}"
                )
        if self.conv_depthwise_kernel_size % 2 == 0:
            raise ValueError(f"conv_depthwise_kernel_size must be odd, got {self.conv_depthwise_kernel_size!r}")
        return self

    @property
    @abstractmethod
    def num_heads(self) -> int:
        """Attention heads."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Width D of the frames that come out."""

    @property
    @abstractmethod
    def convolutions(self) -> tuple[tuple[int, int], ...]:
        """Kernel size and stride of each layer of the adapter; none without one."""


class FbankEncoderConfig(LayeredEncoderConfig):
    """Base of the conformer encoders over pairs of filter-bank frames; a subclass has a field `model`."""

    @property
    @abstractmethod
    def architecture(self) -> ConformerArchitecture:
        """The numbers in force."""

    @property
    def hidden_size(self) -> int:
        """Width D of the frames."""
        return self.architecture.width

    @property
    def convolutions(self) -> tuple[tuple[int, int], ...]:
        """Kernel size and stride of each layer of the adapter."""
        return self.architecture.convolutions

    @property
    def num_mel_bins(self) -> int:
        """Mel bins M."""
        return self.architecture.feature_projection_input_dim // STRIDE

    @property
    def hop(self) -> int:
        """Samples from one frame that comes out to the next."""
        return HOP_LENGTH * STRIDE * prod(stride for _, stride in self.convolutions)

    def input_frames(self, num_samples: Length) -> Length:
        """Frames at 50 Hz of so many samples; an odd filter-bank frame at the end is left out."""
        return conv_output_length(num_samples, kernel_size=FRAME_LENGTH, stride=HOP_LENGTH) // STRIDE

    def adapter_lengths(self, num_frames: Length) -> list[Length]:
        """Lengths before the adapter and after each of its layers; nothing comes out where nothing goes in.

        Source: the convolutions of transformers' adapters, which pad by half their stride on both sides.
        """
        lengths: list[Length] = [num_frames]
        for kernel_size, stride in self.convolutions:
            out = conv_output_length(num_frames, kernel_size=kernel_size, stride=stride, padding=stride // 2)
            num_frames = out * (num_frames > 0)
            lengths.append(num_frames)
        return lengths

    def output_lengths(self, num_samples: Length) -> Length:
        """Frames of so many samples; none for less than two filter-bank frames."""
        return self.adapter_lengths(self.input_frames(num_samples))[-1]

    @property
    def chunker(self) -> Chunker | None:
        """How longer media are cut.

        The last frame of an adapter that pads may have all of its input in the chunk before. Neighbouring chunks
        therefore overlap by one frame on each side at least.
        """
        if self.chunk_seconds is None:
            return None
        reaches_back = any(stride // 2 * 2 >= kernel_size for kernel_size, stride in self.convolutions)
        return Chunker.from_seconds(
            self.chunk_seconds,
            max(self.chunk_overlap_seconds, self.hop / self.sampling_rate if reaches_back else 0.0),
            sampling_rate=self.sampling_rate,
            hop=self.hop,
            num_frames=self.output_lengths,
        )

    def build_preprocessor(self) -> FbankPreprocessor:
        """Makes filter-bank features in the data worker."""
        from speechlmm_encoders.fbank.preprocessor import FbankPreprocessor

        return FbankPreprocessor(self)
