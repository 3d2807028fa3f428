"""Configuration of the MLP adapter. Imports no torch."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from speechlmm_core.interfaces.adapter import AdapterConfig
from speechlmm_core.lengths import Length, ceil_div

if TYPE_CHECKING:
    from speechlmm_adapters.mlp.adapter import MLPAdapter
    from speechlmm_core.interfaces.context import BuildContext


class MLPAdapterConfig(AdapterConfig):
    """Stacks neighbouring frames and maps them to the text decoder's width: R Hz -> R / `stack` Hz."""

    type: Literal["mlp"] = "mlp"
    stack: Annotated[int, Field(ge=1)] = 1
    """Frames joined into one; a last group that is not full is completed with zeros."""
    num_layers: Annotated[int, Field(ge=1)] = 2
    """Linear layers; one is a plain projection."""
    hidden_size: Annotated[int, Field(ge=1)] = 4096
    """Width between the layers."""
    activation: str = "gelu"
    """Activation between the layers, by its name in transformers."""
    residual: Literal["none", "linear", "interpolation"] = "none"
    """What of the stacked frames is added to the output: nothing, a linear projection of them, or they themselves,
    interpolated linearly to the output's width."""
    layer_norm: bool = False
    """Whether the stacked frames are layer-normalised first."""
    hidden_layer_norm: bool = False
    """Whether the frames are layer-normalised before each activation."""
    output_layer_norm: bool = False
    """Whether the output is layer-normalised, before the residual is added."""
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Dropout after each activation."""

    def output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length:
        """The exact number of frames that come out."""
        return ceil_div(num_frames, self.stack)

    def output_frame_rate(self, frame_rate: Fraction) -> Fraction:
        """Frames per second that come out."""
        return frame_rate / self.stack

    def build(self, ctx: BuildContext) -> MLPAdapter:
        """The module, randomly initialised."""
        from speechlmm_adapters.mlp.adapter import MLPAdapter

        return MLPAdapter(self, ctx)
