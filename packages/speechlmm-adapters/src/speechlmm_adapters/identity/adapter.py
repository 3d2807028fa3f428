"""The adapter that passes frames through.

Shapes: B batch, T frames, D hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from speechlmm_core.features import Features, zero_padding
from speechlmm_core.interfaces.modules import Adapter

if TYPE_CHECKING:
    from speechlmm_adapters.identity.config import IdentityAdapterConfig


class IdentityAdapter(Adapter):
    """Passes frames through and zeroes their padding."""

    config: IdentityAdapterConfig

    def __init__(self, config: IdentityAdapterConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Features, target_lengths: Tensor | None = None) -> Features:
        """Returns (B, T, D) unchanged but for zeros in the padding."""
        return Features(zero_padding(features.values, features.lengths), features.lengths, features.extras)
