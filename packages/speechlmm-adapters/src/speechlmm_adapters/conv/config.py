"""Configuration of the convolutional adapter. Imports no torch."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.interfaces.adapter import AdapterConfig
from speechlmm_core.lengths import Length, ceil_div, conv_output_length

if TYPE_CHECKING:
    from speechlmm_adapters.conv.adapter import ConvAdapter
    from speechlmm_core.interfaces.context import BuildContext

Positive = Annotated[int, Field(ge=1)]


class ConvAdapterConfig(AdapterConfig):
    """Strided convolutions over frames: R Hz -> R / (product of `strides`) Hz."""

    type: Literal["conv"] = "conv"
    kernel_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] = (3, 3)
    """Frames that each convolution sees."""
    strides: Annotated[tuple[Positive, ...], Field(min_length=1)] = (2, 2)
    """Frames that each convolution moves on by."""
    padding: Literal["same", "valid"] = "same"
    """`same`: zeros on both sides, so that T frames give ceil(T / stride) and none is lost; `valid`: no zeros, so that
    they give floor((T - kernel) / stride) + 1, and a last window that is not full is dropped."""
    hidden_size: Positive | None = None
    """Width between the convolutions; null for the width that flows in."""
    num_residual_layers: Annotated[int, Field(ge=0)] = 0
    """Convolutions of stride 1, each beside a residual, after the first strided one."""
    residual_kernel_size: Positive = 3
    """Frames that those see; odd."""
    activation: str = "gelu"
    """Activation after every convolution but the last, by its name in transformers."""
    layer_norm: bool = False
    """Whether the output of every convolution is layer-normalised, before the activation."""
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Dropout after each activation."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.kernel_sizes) != len(self.strides):
            raise PydanticCustomError(
                "convolutions",
                "`kernel_sizes` names {kernels} convolutions and `strides` {strides}; give one of each for every one",
                {"kernels": len(self.kernel_sizes), "strides": len(self.strides)},
            )
        if self.residual_kernel_size % 2 == 0:
            raise PydanticCustomError(
                "residual_kernel",
                "`residual_kernel_size: {size}` is even, so that no frame is in its middle; choose an odd one",
                {"size": self.residual_kernel_size},
            )
        return self

    def layer_lengths(self, num_frames: Length) -> list[Length]:
        """Exact lengths after each strided convolution."""
        lengths: list[Length] = []
        for kernel, stride in zip(self.kernel_sizes, self.strides, strict=True):
            if self.padding == "same":
                num_frames = ceil_div(num_frames, stride)
            else:
                num_frames = conv_output_length(num_frames, kernel_size=kernel, stride=stride)
            lengths.append(num_frames)
        return lengths

    def output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length:
        """The exact number of frames that come out."""
        return self.layer_lengths(num_frames)[-1]

    def output_frame_rate(self, frame_rate: Fraction) -> Fraction:
        """Frames per second that come out."""
        return frame_rate / math.prod(self.strides)

    def build(self, ctx: BuildContext) -> ConvAdapter:
        """The module, randomly initialised."""
        from speechlmm_adapters.conv.adapter import ConvAdapter

        return ConvAdapter(self, ctx)
