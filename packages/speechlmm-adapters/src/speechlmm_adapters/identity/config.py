"""Configuration of the adapter that changes nothing. Imports no torch."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from speechlmm_core.interfaces.adapter import AdapterConfig
from speechlmm_core.lengths import Length

if TYPE_CHECKING:
    from speechlmm_adapters.identity.adapter import IdentityAdapter
    from speechlmm_core.interfaces.context import BuildContext


class IdentityAdapterConfig(AdapterConfig):
    """Passes frames through; the encoder must have the text decoder's width."""

    type: Literal["identity"] = "identity"

    def output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length:
        """The exact number of frames that come out."""
        return num_frames

    def output_frame_rate(self, frame_rate: Fraction) -> Fraction:
        """Frames per second that come out."""
        return frame_rate

    def output_size(self, ctx: BuildContext) -> int:
        """The encoder's width."""
        return ctx.input_size

    def build(self, ctx: BuildContext) -> IdentityAdapter:
        """The module, randomly initialised."""
        from speechlmm_adapters.identity.adapter import IdentityAdapter

        return IdentityAdapter(self)
