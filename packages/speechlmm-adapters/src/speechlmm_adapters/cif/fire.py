"""Integrate-and-fire: from a weight for each frame to a frame each time that the weights reach the threshold.

Paper: Dong and Xu 2020, "CIF: Continuous Integrate-and-Fire for End-to-End Speech Recognition" (arXiv:1905.11235).

With c the sum of the weights so far in units of the threshold, frame t fills the interval from c[t-1] to c[t], and the
frame that fires for the n-th time takes what lies between n-1 and n. So a frame contributes to those fired frames whose
interval it overlaps, with the length of the overlap. Each frame has one slot for the interval in which it begins, and
each bound between two intervals one slot for the frame that crosses it: T + N slots in all, sorted by interval.

Shapes: B batch, T frames, N fired frames, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from speechlmm_adapters.segments import sum_slots


def wide_dtype(device: torch.device) -> torch.dtype:
    """fp64, in which sums of weights tell the number of fired frames safely; fp32 where the device has none.

    Sums that are scaled end exactly at their target in fp32, too.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def accumulate(
    weights: Tensor, threshold: float, target_lengths: Tensor | None = None, most: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The sums of the weights, in the device's `wide_dtype`.

    Args:
        weights: (B, T), 0 on padding.
        threshold: Weight that fires a frame.
        target_lengths: (B,) int64, frames that shall fire, -1 where the weights are to stay as they are.
        most: (B,) int64, frames that may fire; where it would be more, the weights are scaled to fire that many.

    Returns:
        (B, T) sums of the weights up to each frame in units of the threshold, scaled so that they end at the target,
        and (B,) sums of all of them, not scaled.
    """
    sums = (weights.to(wide_dtype(weights.device)) / threshold).cumsum(dim=1)  # (B, T)
    total = sums[:, -1] if sums.shape[1] else sums.new_zeros(len(sums))
    if target_lengths is None and most is None:
        return sums, total
    wanted = torch.full_like(total, -1) if target_lengths is None else target_lengths.to(total.dtype)  # (B,)
    if most is not None:
        over = torch.where(wanted < 0, total.detach(), wanted) > most
        wanted = torch.where(over, most.to(total.dtype), wanted)
    # Divided first: the last sum is then exactly 1, and exactly the target in the end.
    scaled = sums / total.clamp(min=1e-9)[:, None] * wanted[:, None]
    known = (wanted >= 0) & (total > 1e-9)
    return torch.where(known[:, None], scaled, sums), total  # (B, T), (B,)


def count(sums: Tensor, residual: float | None) -> Tensor:
    """(B,) int64 frames that fire.

    Args:
        sums: (B, T), from `accumulate`.
        residual: Weight in units of the threshold that fires a last frame; None to drop what is left.
    """
    if not sums.shape[1]:
        return torch.zeros(len(sums), dtype=torch.int64, device=sums.device)
    total = sums[:, -1].detach()
    whole = total.floor()
    if residual is not None:
        whole = whole + (total - whole >= residual)
    return whole.long()


def fire(values: Tensor, sums: Tensor, lengths: Tensor, num_frames: int) -> Tensor:
    """The fired frames.

    Args:
        values: (B, T, D), finite.
        sums: (B, T), from `accumulate`.
        lengths: (B,) int64, frames that fire; the weights beyond them are left out.
        num_frames: N, the largest of them, or more.

    Returns:
        (B, N, D): sums of frames with weights that add up to 1, or to what was left for a last frame; zeros beyond the
        lengths. No value is read from the device.
    """
    B, T, _ = values.shape
    if not num_frames:
        return values[:, :0]  # (B, 0, D)
    last = lengths[:, None].to(sums.dtype)
    ends = torch.where(sums < last, sums, last)  # (B, T); nothing flows back from where they meet
    begins = F.pad(ends[:, :-1], (1, 0))  # (B, T)
    # (B, T): the interval in which each frame begins. It never falls, though parallel sums may by their rounding.
    first = begins.detach().long().cummax(dim=1).values
    bounds = torch.arange(1, num_frames + 1, device=values.device).expand(B, num_frames).contiguous()  # (B, N)
    after = torch.searchsorted(first, bounds)  # (B, N): the first frame that begins beyond the bound
    crossing = after - 1  # (B, N): the frame before it crosses the bound, or ends there
    inside = torch.minimum(ends, first + 1) - begins  # (B, T)
    across = (torch.minimum(ends.gather(1, crossing), bounds + 1) - bounds).clamp(min=0)  # (B, N)
    # Before a frame stand those before it and the bounds up to it; before a bound, the frames up to it and the bounds.
    slots = torch.cat([torch.arange(T, device=values.device) + first, after + bounds - 1], dim=1)  # (B, T+N)
    frame = torch.cat([torch.arange(T, device=values.device).expand(B, T), crossing], dim=1)  # (B, T+N)
    frame = torch.empty_like(frame).scatter(1, slots, frame)
    weights = torch.zeros_like(slots, dtype=sums.dtype).scatter(1, slots, torch.cat([inside, across], dim=1))
    starts = F.pad(after + bounds - 1, (1, 0))  # (B, N+1); the last one holds what is left out
    return sum_slots(values, frame, weights, starts)[:, :num_frames]  # (B, N, D)
