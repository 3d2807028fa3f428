"""Sums over segments of neighbouring frames, in time and memory linear in the frames.

Shapes: B batch, T frames, N segments, P slots, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sum_slots(values: Tensor, frames: Tensor, weights: Tensor, starts: Tensor) -> Tensor:
    """Weighted sums of frames, where each segment takes the frames in a run of slots.

    Args:
        values: (B, T, D), finite.
        frames: (B, P) int64, the frame of each slot.
        weights: (B, P), the weight of each slot.
        starts: (B, N) int64, each segment's first slot, never falling, the first one 0.

    Returns:
        (B, N, D) in the dtype of `values`. Nothing is read from the device.
    """
    B, T, D = values.shape
    P, N = frames.shape[1], starts.shape[1]
    row = torch.arange(B, device=values.device)[:, None]
    sums = F.embedding_bag(
        (frames + row * T).flatten(),
        values.reshape(B * T, D),
        (starts + row * P).flatten(),
        mode="sum",
        per_sample_weights=weights.to(values.dtype).flatten(),
    )
    return sums.view(B, N, D)  # (B, N, D)


def sum_segments(values: Tensor, segments: Tensor, weights: Tensor, num_segments: int) -> Tensor:
    """Weighted sums of frames, each of which belongs to one segment.

    Args:
        values: (B, T, D), finite.
        segments: (B, T) int64, each frame's segment, never falling within a row; those from `num_segments` on are
            left out.
        weights: (B, T).
        num_segments: N.

    Returns:
        (B, N, D) in the dtype of `values`. Nothing is read from the device.
    """
    B, T, _ = values.shape
    frames = torch.arange(T, device=values.device).expand(B, T)
    wanted = torch.arange(num_segments + 1, device=values.device).expand(B, num_segments + 1).contiguous()
    starts = torch.searchsorted(segments, wanted)  # (B, N+1): what follows the last segment has one of its own
    starts[:, 0] = 0
    return sum_slots(values, frames, weights, starts)[:, :num_segments]  # (B, N, D)
