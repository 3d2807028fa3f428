"""Transformer layers over frames.

Vaswani et al., 2017, "Attention Is All You Need" (arXiv:1706.03762), with the norms before the blocks (Xiong et al.,
2020, "On Layer Normalization in the Transformer Architecture", arXiv:2002.04745).

Shapes: B batch, T frames, H heads, D hidden.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from speechlmm_adapters.attention import Attention, FeedForward, initialise
from speechlmm_core.attention.choice import choose_attention
from speechlmm_core.features import Features, length_mask, zero_padding
from speechlmm_core.interfaces.modules import Adapter

if TYPE_CHECKING:
    from speechlmm_adapters.transformer.config import TransformerAdapterConfig
    from speechlmm_core.interfaces.context import BuildContext


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward block, each behind a norm and beside a residual."""

    def __init__(self, config: TransformerAdapterConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, values: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        attention, normed = self.attention, self.attention_norm(values)
        query, key = attention.split(attention.query(normed)), attention.split(attention.key(normed))  # (B, H, T, D/H)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        attended = attention.attend(query, key, attention.split(attention.value(normed)), mask)  # (B, T, D)
        values = values + self.dropout(attended)
        return values + self.dropout(self.feed_forward(self.feed_forward_norm(values)))


class TransformerAdapter(Adapter):
    """See `TransformerAdapterConfig`; the layers are `.model`, with linear layers before and behind."""

    config: TransformerAdapterConfig

    def __init__(self, config: TransformerAdapterConfig, ctx: BuildContext) -> None:
        """Builds the layers between the widths of the context.

        Raises:
            ConfigError: transformers knows no such activation.
        """
        super().__init__()
        self.config = config
        choose_attention(ctx, Attention)  # there is one, and who asked for another is told
        width, eps = config.hidden_size, config.layer_norm_eps
        self.input = nn.Linear(ctx.input_size, width) if ctx.input_size != width else nn.Identity()
        self.input_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(config.dropout)
        self.model = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.output_norm = nn.LayerNorm(width, eps=eps)
        self.output = nn.Linear(width, ctx.output_size)
        self.apply(initialise)

    def forward(self, features: Features, target_lengths: Tensor | None = None) -> Features:
        """Adapts (B, T, D_in) to (B, T, D_out); padding comes out as zeros."""
        lengths = features.lengths
        values = self.input_norm(self.input(zero_padding(features.values, lengths)))  # (B, T, D)
        frames = values.shape[1]
        rotation = None
        if self.config.positions == "rotary":
            table = angles(frames, self.config.head_size, values.device)
            rotation = table.cos().to(values.dtype), table.sin().to(values.dtype)
        else:
            table = angles(frames, self.config.hidden_size, values.device)
            values = values + torch.cat([table.sin(), table.cos()], dim=1).to(values.dtype)
        values = self.dropout(values)
        # A softmax over nothing is not a number, so an empty row sees its first frame.
        mask = length_mask(lengths.clamp(min=1), frames)[:, None, None, :]  # (B, 1, 1, T)
        for layer in self.model:
            values = layer(values, mask, rotation)
        return Features(zero_padding(self.output(self.output_norm(values)), lengths), lengths)


def angles(num_frames: int, width: int, device: torch.device) -> Tensor:
    """(T, D / 2) fp32: the angle of each frame at each frequency, from 1 down to 1/10000 a frame."""
    frequencies = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(10_000) / width))
    return torch.arange(num_frames, device=device, dtype=torch.float32)[:, None] * frequencies  # (T, D / 2)


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (first half, second half) of (..., T, D) by angles whose sines and cosines are (T, D / 2)."""
    first, second = values.chunk(2, dim=-1)  # (..., T, D / 2)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
