"""Masking spans of frames and of features at training, drawn on the device.

Park et al., 2019, "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition" (arXiv:1904.08779),
on hidden states as in Baevski et al., 2020, "wav2vec 2.0" (arXiv:2006.11477). The numbers mean what they mean in
transformers, which draws on the host, and waits there for the lengths: a row of n positions gets
``prob * n / length`` spans on average (rounded up or down by chance; at least so many as are asked for, at most as many
as could lie side by side), which begin at different positions drawn evenly and may overlap. Transformers rounds all
rows of a batch by one draw, we each row by its own.

Shapes: B batch, T frames, D hidden.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from speechlmm_core.features import length_mask


class MaskNumbers(Protocol):
    """The numbers of an architecture."""

    @property
    def mask_time_prob(self) -> float:
        """Share of frames masked."""
        ...

    @property
    def mask_time_length(self) -> int:
        """Frames in a span."""
        ...

    @property
    def mask_time_min_masks(self) -> int:
        """Spans of frames at least."""
        ...

    @property
    def mask_feature_prob(self) -> float:
        """Share of features masked."""
        ...

    @property
    def mask_feature_length(self) -> int:
        """Features in a span."""
        ...

    @property
    def mask_feature_min_masks(self) -> int:
        """Spans of features at least."""
        ...


def mask_spans(hidden: Tensor, lengths: Tensor, vector: Tensor | None, numbers: MaskNumbers) -> Tensor:
    """Puts a vector in the place of spans of frames, and zeros in that of spans of features.

    Args:
        hidden: (B, T, D).
        lengths: (B,) valid frames; others are not masked.
        vector: (D,); None where a model has none, since transformers makes none if both shares are zero: nothing is
            masked then.
        numbers: How much is masked.

    Returns:
        (B, T, D).
    """
    if vector is None:
        return hidden
    rows, frames, width = hidden.shape
    spans = draw_spans(lengths, frames, numbers.mask_time_prob, numbers.mask_time_length, numbers.mask_time_min_masks)
    # Whether anything is masked or not, the vector is in the graph: ranks that draw apart must agree on that.
    hidden = torch.where(spans[:, :, None], vector.to(hidden.dtype), hidden)
    if numbers.mask_feature_prob > 0:
        widths = torch.full((rows,), width, device=hidden.device)
        spans = draw_spans(
            widths, width, numbers.mask_feature_prob, numbers.mask_feature_length, numbers.mask_feature_min_masks
        )
        hidden = hidden.masked_fill(spans[:, None, :], 0.0)
    return hidden


def draw_spans(lengths: Tensor, size: int, prob: float, span: int, min_spans: int) -> Tensor:
    """Draws spans in rows of a batch.

    Args:
        lengths: (B,) positions of each row in which spans may lie.
        size: Positions S of a row with padding.
        prob: Spans times their length, as a share of the row; none are drawn for zero.
        span: Positions in a span.
        min_spans: Spans at least, where the row has room for them.

    Returns:
        (B, S) bool, true within spans.
    """
    shape, device = (len(lengths), size), lengths.device
    if prob <= 0:
        return torch.zeros(shape, dtype=torch.bool, device=device)
    wanted = (lengths * (prob / span) + torch.rand(len(lengths), device=device)).long().clamp(min=min_spans)  # (B,)
    count = torch.minimum(wanted, lengths // span)
    can_start = length_mask(lengths - span + 1, size)  # (B, S)
    order = torch.rand(shape, device=device).masked_fill(~can_start, -1.0).argsort(1, descending=True)
    starts = torch.zeros(shape, dtype=torch.long, device=device)
    starts.scatter_(1, order, length_mask(count, size).long())  # the first of a row in a random order
    begun = starts.cumsum(1)  # (B, S)
    ended = torch.nn.functional.pad(begun, (span, 0))[:, :size]
    return begun > ended
