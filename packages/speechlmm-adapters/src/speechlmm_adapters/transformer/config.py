"""Configuration of the transformer adapter. Imports no torch."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from speechlmm_adapters.attention_config import AttentionAdapterConfig
from speechlmm_core.lengths import Length

if TYPE_CHECKING:
    from speechlmm_adapters.transformer.adapter import TransformerAdapter
    from speechlmm_core.interfaces.context import BuildContext


class TransformerAdapterConfig(AttentionAdapterConfig):
    """Pre-norm transformer layers over whole clips, with positions: R Hz -> R Hz."""

    type: Literal["transformer"] = "transformer"
    positions: Literal["sinusoidal", "rotary"] = "sinusoidal"
    """Sinusoids added to the frames, or rotations of queries and keys (arXiv:2104.09864)."""

    @model_validator(mode="after")
    def _positions_fit(self) -> Self:
        name, size = ("a head", self.head_size) if self.positions == "rotary" else ("`hidden_size`", self.hidden_size)
        if size % 2:
            raise PydanticCustomError(
                "odd_width",
                "{positions} positions come in pairs, but {name} is {size} wide; choose an even width",
                {"positions": self.positions, "name": name, "size": size},
            )
        return self

    def output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length:
        """As many frames as come in."""
        return num_frames

    def output_frame_rate(self, frame_rate: Fraction) -> Fraction:
        """As it comes in."""
        return frame_rate

    def build(self, ctx: BuildContext) -> TransformerAdapter:
        """The module, randomly initialised."""
        from speechlmm_adapters.transformer.adapter import TransformerAdapter

        return TransformerAdapter(self, ctx)
