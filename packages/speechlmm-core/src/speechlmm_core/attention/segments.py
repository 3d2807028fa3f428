"""Causal attention segment by segment with torch's scaled dot product: any device, any option.

Shapes: N positions of the row, S segments, n positions of one segment, H heads, K key/value heads, D head width,
G segments of equal length, Q queries and J keys of one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_BLOCK = 256
"""Fewest queries that are handled together under a sliding window."""


@dataclass(frozen=True)
class _Options:
    scale: float
    dropout: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None


def attend_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    *,
    scale: float,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention within each segment of a row.

    Args:
        query: (1, H, N, D).
        key: (1, K, N, D).
        value: (1, K, N, D).
        lengths: n of each segment; their sum is N.
        scale: Factor on the scores.
        dropout: Probability on the attention weights.
        window: Positions that a position sees, itself included; None for all before it.
        softcap: Scores z become ``softcap * tanh(z / softcap)``.
        sinks: (H,) score of each head's sink.

    Returns:
        (1, N, H, D).
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)  # (1, H, N, D)
        value = value.repeat_interleave(groups, dim=1)  # (1, H, N, D)
    options = _Options(scale, dropout, window, softcap, sinks)
    sizes = list(lengths)
    if len(sizes) == 1:
        return _attend(query, key, value, options).transpose(1, 2)
    queries, keys, values = (tensor.split(sizes, dim=2) for tensor in (query, key, value))
    same: dict[int, list[int]] = {}
    for number, n in enumerate(sizes):
        same.setdefault(n, []).append(number)
    out: list[Tensor] = [query] * len(sizes)
    for members in same.values():
        # One call for all segments of a length.
        parts = [torch.cat([tensor[i] for i in members]) for tensor in (queries, keys, values)]  # (G, H, n, D)
        attended = _attend(parts[0], parts[1], parts[2], options).transpose(1, 2)  # (G, n, H, D)
        for i, one in zip(members, attended.split(1), strict=True):
            out[i] = one
    return torch.cat(out, dim=1)  # (1, N, H, D)


def _attend(query: Tensor, key: Tensor, value: Tensor, options: _Options) -> Tensor:
    n, window = query.shape[2], options.window
    if window is None or n <= window:
        return _attend_block(query, key, value, options)
    block = max(window, MIN_BLOCK)
    out: list[Tensor] = []
    for start in range(0, n, block):
        stop, first = min(start + block, n), max(0, start - window + 1)
        out.append(
            _attend_block(
                query[:, :, start:stop], key[:, :, first:stop], value[:, :, first:stop], options, offsets=(start, first)
            )
        )
    return torch.cat(out, dim=2)  # (G, H, n, D)


def _attend_block(
    query: Tensor, key: Tensor, value: Tensor, options: _Options, *, offsets: tuple[int, int] = (0, 0)
) -> Tensor:
    """(G, H, Q, D) for queries and keys that start at these positions of their segments."""
    start, first = offsets
    Q, J = query.shape[2], key.shape[2]
    window = options.window if options.window is not None and options.window < start + Q else None
    explicit = options.softcap is not None or options.sinks is not None
    mask: Tensor | None = None
    if window is not None or explicit:
        distance = torch.arange(start, start + Q, device=query.device)[:, None]
        distance = distance - torch.arange(first, first + J, device=query.device)[None, :]  # (Q, J)
        mask = distance >= 0
        if window is not None:
            mask = mask & (distance < window)
    if not explicit:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=options.dropout, is_causal=mask is None, scale=options.scale
        )
    assert mask is not None
    scores = (query @ key.transpose(2, 3)) * options.scale  # (G, H, Q, J)
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    scores = scores.float().masked_fill(~mask, torch.finfo(torch.float32).min)
    if options.sinks is not None:
        sinks = options.sinks.float()[None, :, None, None].expand(scores.shape[0], -1, Q, 1)
        scores = torch.cat([scores, sinks], dim=3)  # (G, H, Q, J+1)
    weights = scores.softmax(dim=3)[..., :J].to(query.dtype)  # (G, H, Q, J)
    return F.dropout(weights, options.dropout) @ value
