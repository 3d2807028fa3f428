"""The norm over time of the base models, over valid frames only, and over the whole of media that were cut.

Shapes: B rows, C channels, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from speechlmm_core.features import length_mask

BLOCK = 1 << 22
"""Values that are summed at a time, which bounds what the statistics take where no gradients are recorded."""


def masked_channel_norm(values: Tensor, lengths: Tensor, norm: nn.GroupNorm, media: Tensor | None = None) -> Tensor:
    """A group norm with one group a channel, its statistics those of the frames that count.

    Two passes, since a sum of squares that is not about the mean would lose it to rounding; they go by blocks of frames
    in fp32. Where gradients are recorded, the blocks of the second pass are kept for them, an fp32 copy of the input in
    all; the output is made in fp32 before it is cast to the input's dtype.

    Args:
        values: (B, C, T).
        lengths: (B,) frames of each row, from its first on, that the statistics are taken over.
        norm: Holds scale, shift and epsilon.
        media: (B,) the number, below B, of the medium that a row is of, where media were cut: the statistics are a
            medium's. None where each row is its own.

    Returns:
        (B, C, T); what stands beyond the valid frames is undefined.
    """
    count = _over_media(lengths[:, None].float(), media).clamp(min=1.0)  # (B, 1)
    mean = values.new_zeros(values.shape[:2], dtype=torch.float32)  # (B, C)
    for block, mask in _blocks(values, lengths):
        mean = mean + (block * mask).sum(2)
    mean = _over_media(mean, media) / count
    variance = torch.zeros_like(mean)
    for block, mask in _blocks(values, lengths):
        variance = variance + ((block - mean[:, :, None]) * mask).square().sum(2)
    variance = _over_media(variance, media) / count
    scale = norm.weight.float() * torch.rsqrt(variance + norm.eps)
    shift = norm.bias.float() - mean * scale
    return torch.addcmul(shift[:, :, None], values, scale[:, :, None]).to(values.dtype)


def _over_media(sums: Tensor, media: Tensor | None) -> Tensor:
    """(B, C) each row's sum -> the sum over all rows of its medium."""
    if media is None:
        return sums
    return torch.zeros_like(sums).index_add(0, media, sums)[media]


def _blocks(values: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of frames (B, C, T), each with its mask (B, 1, T), both in fp32."""
    rows, channels, frames = values.shape
    mask = length_mask(lengths, frames).float()[:, None, :]  # (B, 1, T)
    step = max(1, BLOCK // (rows * channels))
    for block, own in zip(values.split(step, 2), mask.split(step, 2), strict=True):
        yield block.float(), own
