"""The layers of the Q-Former.

Li et al., 2023, "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language
Models" (arXiv:2301.12597); the norms follow the blocks, as in BERT.

Shapes: B batch, T frames, W windows, S frames that a window sees, Q queries, H heads, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from speechlmm_adapters.attention import INITIALIZER_RANGE, Attention, FeedForward

if TYPE_CHECKING:
    from speechlmm_adapters.qformer.config import QFormerAdapterConfig


@dataclass(frozen=True)
class Windows:
    """How frames are cut into windows."""

    count: int
    """Windows in a row, W."""
    size: int
    """Frames in a window."""
    context: int
    """Frames seen on each side, so that S = size + 2 * context."""

    def cut(self, values: Tensor) -> Tensor:
        """(B, context + T + ..., D) -> (B * W, S, D)."""
        seen = self.size + 2 * self.context
        return values.unfold(1, seen, self.size).transpose(2, 3).flatten(0, 1)  # (B * W, S, D)

    def pad(self, values: Tensor) -> Tensor:
        """(B, T, D) -> (B, context + W * size + context, D)."""
        missing = self.count * self.size - values.shape[1]
        return nn.functional.pad(values, (0, 0, self.context, missing + self.context))

    def mask(self, lengths: Tensor) -> Tensor:
        """(B * W, 1, 1, S) bool, true on the frames of the clip; all are where a window has none of them.

        Such a window is padding, and a softmax over nothing is not a number.
        """
        starts = torch.arange(self.count, device=lengths.device)[:, None] * self.size - self.context  # (W, 1)
        frames = starts + torch.arange(self.size + 2 * self.context, device=lengths.device)  # (W, S)
        valid = (frames >= 0) & (frames < lengths[:, None, None])  # (B, W, S)
        return (valid | ~valid.any(2, keepdim=True)).flatten(0, 1)[:, None, None, :]  # (B * W, 1, 1, S)


class QFormerLayer(nn.Module):
    """The queries look at each other, then at the frames of their window, then pass a feed-forward block."""

    def __init__(self, config: QFormerAdapterConfig, input_size: int, *, reads: bool) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.cross_attention = Attention(config, input_size) if reads else None
        self.cross_attention_norm = nn.LayerNorm(width, eps=eps) if reads else None
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, values: Tensor, frames: Tensor, windows: Windows, mask: Tensor) -> Tensor:
        """(B * W, Q, D) -> (B * W, Q, D); ``frames`` (B, ..., D_in) are padded for the windows."""
        own = self.attention
        query, key, value = (own.split(layer(values)) for layer in (own.query, own.key, own.value))
        values = self.attention_norm(values + self.dropout(own.attend(query, key, value, None)))
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            cross = self.cross_attention
            # Projected before they are cut, so that frames seen from two windows are projected once.
            key, value = (cross.split(windows.cut(layer(frames))) for layer in (cross.key, cross.value))
            attended = cross.attend(cross.split(cross.query(values)), key, value, mask)  # (B * W, Q, D)
            values = self.cross_attention_norm(values + self.dropout(attended))
        return self.feed_forward_norm(values + self.dropout(self.feed_forward(values)))


class QFormer(nn.Module):
    """Learned queries and the layers that they pass."""

    def __init__(self, config: QFormerAdapterConfig, input_size: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(config.num_queries, config.hidden_size))
        nn.init.normal_(self.queries, std=INITIALIZER_RANGE)
        self.query_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(config, input_size, reads=number % config.cross_attention_every == 0)
            for number in range(config.num_layers)
        )

    def forward(self, frames: Tensor, lengths: Tensor, windows: Windows) -> Tensor:
        """Runs the queries over every window.

        Args:
            frames: (B, T, D_in), finite in the padding too.
            lengths: (B,) valid frames.
            windows: How T frames are cut.

        Returns:
            (B, W * Q, D); what stands beyond the clips' own windows is undefined.
        """
        batch = frames.shape[0]
        mask = windows.mask(lengths)  # (B * W, 1, 1, S)
        frames = windows.pad(frames)  # (B, context + W * size + context, D_in)
        values = self.query_norm(self.queries).expand(batch * windows.count, -1, -1)  # (B * W, Q, D)
        values = self.dropout(values)
        for layer in self.layers:
            values = layer(values, frames, windows, mask)
        return values.unflatten(0, (batch, windows.count)).flatten(1, 2)  # (B, W * Q, D)
