"""Self-attention with learned vectors for the distance from a query to a key, by scaled-dot-product kernels.

Shaw et al., 2018, "Self-Attention with Relative Position Representations" (arXiv:1803.02155). Transformers' modules for
SeamlessM4T v2 and w2v-BERT 2.0 look a vector up for each pair of frames and keep (T, T, D / H) for the gradient; here
each query meets each of the P vectors once, and the products are put where their distance is.

Shapes: B batch, T frames, D hidden, H heads, P distances.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RelativeKeyAttention(nn.Module):
    """Takes the place, and the weights under their names, of a `relative_key` self-attention of transformers."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.num_heads: int = source.num_heads
        self.scaling: float = source.scaling
        self.left: int = source.left_max_position_embeddings
        self.right: int = source.right_max_position_embeddings
        self.linear_q: nn.Linear = source.linear_q
        self.linear_k: nn.Linear = source.linear_k
        self.linear_v: nn.Linear = source.linear_v
        self.linear_out: nn.Linear = source.linear_out
        self.distance_embedding: nn.Embedding = source.distance_embedding
        self.dropout: nn.Dropout = source.dropout

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Attends.

        Args:
            hidden_states: (B, T, D).
            attention_mask: (B, 1, 1 or T, T) bool, true where a frame may be attended to.

        Returns:
            (B, T, D), and None in the place of the weights, as the layers of transformers expect it.
        """
        projected = (self.linear_q(hidden_states), self.linear_k(hidden_states), self.linear_v(hidden_states))
        query, key, value = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in projected)
        distances = torch.arange(self.left + 1 + self.right, device=hidden_states.device)  # (P,)
        # By a call and not by its attribute: a weight that is spread over ranks is gathered for calls.
        table = self.distance_embedding(distances).to(query.dtype)  # (P, D / H)
        bias = by_distance(query @ table.mT * self.scaling, self.left, self.right)  # (B, H, T, T)
        bias = bias.masked_fill(~attention_mask, torch.finfo(bias.dtype).min)
        values = nn.functional.scaled_dot_product_attention(
            query, key, value, bias, dropout_p=self.dropout.p if self.training else 0.0, scale=self.scaling
        )  # (B, H, T, D / H)
        return self.linear_out(values.transpose(1, 2).flatten(2)), None  # (B, T, D)


def by_distance(scores: Tensor, left: int, right: int) -> Tensor:
    """Puts each query's scores of distances where the keys are.

    Args:
        scores: (B, H, T, P) scores of the distances from -``left`` to ``right``; the outer ones hold beyond, too.
        left: Largest distance to the left.
        right: Largest distance to the right; P is ``left + 1 + right``.

    Returns:
        (B, H, T, T): at (query, key) the score of the distance from the one to the other.
    """
    num_frames = scores.shape[2]
    before, after = min(left, num_frames - 1), min(right, num_frames)
    known = scores[..., left - before : left + after + 1]
    first = known[..., :1].expand(*known.shape[:3], num_frames - 1 - before)
    last = known[..., -1:].expand(*known.shape[:3], num_frames - after)
    line = torch.cat([first, known, last], dim=3)  # (B, H, T, 2 T): distances from 1 - T to T
    # One entry less in a row moves each query's row by one against that of the query before.
    line = line.flatten(2)[..., num_frames - 1 : 2 * num_frames**2 - 1]
    return line.unflatten(2, (num_frames, 2 * num_frames - 1))[..., :num_frames]  # (B, H, T, T)
