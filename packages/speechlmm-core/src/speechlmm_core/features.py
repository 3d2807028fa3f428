"""What flows between the parts of the composite model.

Shapes: B batch, T frames, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Frames of a batch of media: all that passes between encoder, adapter and splice.

    What stands beyond a row's length is padding; it must not influence the frames before it.
    """

    values: Tensor
    """(B, T, D)."""
    lengths: Tensor
    """(B,) int64: valid frames in each row."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Further outputs by name, for the component's own objectives (the weights of a CIF adapter, say)."""

    def mask(self) -> Tensor:
        """(B, T) bool, true on valid frames."""
        return length_mask(self.lengths, self.values.shape[1])


@dataclass(frozen=True)
class Loss:
    """A loss as a sum and the name of the unit that it is a sum over; the trainer divides by the global count."""

    sum: Tensor
    """Scalar, fp32."""
    unit: str
    """Key of the count in the batch's `num_items`."""
    by_sample: Tensor | None = None
    """(S,) each sample's share of the sum, without a gradient; None where it is not known (see `by_sample`)."""


def by_sample(values: Tensor, batch: Mapping[str, Any], of: str) -> Tensor | None:
    """Adds up an objective's losses by the samples that they belong to; nothing is read from the device.

    Args:
        values: (M,) losses of the supervised positions, or (B,) of an input's media.
        batch: The collator's batch; its `samples` say which sample each belongs to.
        of: `supervised`, or the input's name.

    Returns:
        (S,), or None for a batch that does not say it.
    """
    samples = batch.get("samples")
    if samples is None:
        return None
    index = samples["supervised"] if of == "supervised" else samples["media"][of]
    return values.new_zeros(samples["count"]).index_add_(0, index, values.detach())  # (S,)


def length_mask(lengths: Tensor, max_length: int) -> Tensor:
    """(B, T) bool mask that is true for the first ``lengths[b]`` positions of row b."""
    return torch.arange(max_length, device=lengths.device)[None, :] < lengths[:, None]  # (B, T)


def zero_padding(values: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, D) with zeros beyond each row's length, whatever stood there."""
    return values.masked_fill(~length_mask(lengths, values.shape[1])[:, :, None], 0.0)
