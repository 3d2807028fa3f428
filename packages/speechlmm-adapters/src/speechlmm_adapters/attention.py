"""Multi-head attention on torch's fused kernels, and what stands around it.

Vaswani et al., 2017, "Attention Is All You Need" (arXiv:1706.03762).

Shapes: B batch, Q queries, T keys, H heads, D hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from speechlmm_adapters.activation import activation

if TYPE_CHECKING:
    from speechlmm_adapters.attention_config import AttentionAdapterConfig

MAX_BATCH = 65_535
"""Rows that a kernel takes at once: they are one dimension of a CUDA grid."""

INITIALIZER_RANGE = 0.02
"""Standard deviation of new weights, as in BERT."""


class Attention(nn.Module):
    """Multi-head attention whose keys and values are projected apart, for those who cut them into windows."""

    attn_implementation = "sdpa"

    def __init__(self, config: AttentionAdapterConfig, key_size: int | None = None) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_size or width, width)
        self.value = nn.Linear(key_size or width, width)
        self.output = nn.Linear(width, width)

    def split(self, values: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, D / H)."""
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(B, Q, D) from split queries, keys and values.

        Args:
            query: (B, H, Q, D / H).
            key: (B, H, T, D / H).
            value: (B, H, T, D / H).
            mask: (B, 1, 1 or Q, T) bool, true where a key is seen.
        """
        dropout = self.dropout if self.training else 0.0
        parts = [
            nn.functional.scaled_dot_product_attention(
                query[start : start + MAX_BATCH],
                key[start : start + MAX_BATCH],
                value[start : start + MAX_BATCH],
                attn_mask=None if mask is None else mask[start : start + MAX_BATCH],
                dropout_p=dropout,
            )
            for start in range(0, max(query.shape[0], 1), MAX_BATCH)
        ]
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.output(attended.transpose(1, 2).flatten(2))  # (B, Q, D)


class FeedForward(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: AttentionAdapterConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.activation)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, values: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down(self.activation(self.up(values)))


def initialise(module: nn.Module) -> None:
    """Gives linear layers BERT's initial values; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INITIALIZER_RANGE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
