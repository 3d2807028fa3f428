"""What the adapters share.

Shapes: B batch, T frames, D hidden.
"""

from __future__ import annotations

from torch import Tensor

from speechlmm_core.features import length_mask


def zero_padding(values: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, D) with zeros beyond each row's length, whatever stood there."""
    return values.masked_fill(~length_mask(lengths, values.shape[1])[:, :, None], 0.0)
