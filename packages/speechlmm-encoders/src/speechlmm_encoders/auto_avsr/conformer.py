"""AutoAVSR's conformer layers with relative positions, over the valid frames of a batch.

Gulati et al., 2020, "Conformer: Convolution-augmented Transformer for Speech Recognition" (arXiv:2005.08100); Dai et
al., 2019, "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context" (arXiv:1901.02860). The names of
the parameters are those of the published checkpoints.

All that looks at one frame at a time works on the valid frames in one row, so that padding costs nothing and takes no
part in the statistics of a batch norm; attention and the convolution over time spread them out over padded rows.

Shapes: N frames of all clips, R rows, T frames of the longest, D hidden, H heads, P = 2 T - 1 relative positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechlmm_core.features import length_mask

LAYER_NORM_EPS = 1e-12
"""As the published checkpoints were trained."""

MAX_SCORES = 1 << 26
"""Attention scores computed at a time, which bounds the memory that long clips need."""


@dataclass(frozen=True)
class FrameLayout:
    """How the N valid frames of a batch lie in its padded rows."""

    index: Tensor
    """(N,) where in the (R * T) frames the valid ones are."""
    lengths: Tensor
    """(R,) valid frames of each row."""
    num_frames: int
    """T."""

    @property
    def padded(self) -> bool:
        """Whether any row is shorter than the longest."""
        return len(self.index) < len(self.lengths) * self.num_frames

    def spread(self, values: Tensor) -> Tensor:
        """(N, D) -> (R, T, D), with zeros beyond each row's frames."""
        shape = (len(self.lengths), self.num_frames, values.shape[1])
        if not self.padded:
            return values.view(shape)
        rows = values.new_zeros(shape[0] * shape[1], shape[2])
        return rows.index_copy(0, self.index, values).view(shape)  # (R, T, D)

    def gather(self, values: Tensor) -> Tensor:
        """(R, T, D) -> (N, D)."""
        values = values.flatten(0, 1)
        return values.index_select(0, self.index) if self.padded else values  # (N, D)

    def mask(self) -> Tensor | None:
        """(R, 1, 1, T) true on the keys that attention may see; None where that is all of them.

        An empty row sees its first frame, since a softmax over nothing is not a number.
        """
        return length_mask(self.lengths.clamp(min=1), self.num_frames)[:, None, None, :] if self.padded else None


def relative_positions(num_frames: int, width: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(2 T - 1, D) interleaved sines and cosines of the distances T - 1, ..., -(T - 1) from a key to its query."""
    distances = torch.arange(num_frames - 1, -num_frames, -1, device=device, dtype=torch.float32)
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000) / width))  # (D / 2,)
    angles = distances[:, None] * rates  # (P, D / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).to(dtype)  # (P, D)


class RelativeAttention(nn.Module):
    """Attention whose scores have a term for the distance between query and key."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, implementation: str) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.implementation = num_heads, dropout, implementation
        self.linear_q = nn.Linear(hidden_size, hidden_size)
        self.linear_k = nn.Linear(hidden_size, hidden_size)
        self.linear_v = nn.Linear(hidden_size, hidden_size)
        self.linear_out = nn.Linear(hidden_size, hidden_size)
        self.linear_pos = nn.Linear(hidden_size, hidden_size, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(num_heads, hidden_size // num_heads))
        self.pos_bias_v = nn.Parameter(torch.empty(num_heads, hidden_size // num_heads))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def forward(self, values: Tensor, positions: Tensor, layout: FrameLayout) -> Tensor:
        """(N, D) and (P, D) -> (N, D)."""
        query, key, value = (
            self._heads(layout.spread(linear(values))) for linear in (self.linear_q, self.linear_k, self.linear_v)
        )  # (R, H, T, D / H)
        places = self._heads(self.linear_pos(positions)[None])[0]  # (H, P, D / H)
        scale = query.shape[3] ** -0.5
        by_content = query + self.pos_bias_u[:, None]
        by_place = (query + self.pos_bias_v[:, None]) * scale
        mask, longest = layout.mask(), layout.num_frames
        num_rows, num_queries = _steps(query)
        rows: list[Tensor] = []
        for row in range(0, len(query), num_rows):
            own = slice(row, row + num_rows)
            parts: list[Tensor] = []
            for start in range(0, longest, num_queries):
                stop = min(start + num_queries, longest)
                near = places[:, longest - stop : 2 * longest - 1 - start]  # (H, stop - start + T - 1, D / H)
                bias = shifted(by_place[own, :, start:stop] @ near.transpose(1, 2), longest)  # (R, H, T_q, T)
                if mask is not None:
                    bias = bias.masked_fill(~mask[own], torch.finfo(bias.dtype).min)
                parts.append(self._attend(by_content[own, :, start:stop], key[own], value[own], bias, scale))
            rows.append(torch.cat(parts, dim=2) if len(parts) > 1 else parts[0])
        out = torch.cat(rows) if len(rows) > 1 else rows[0]  # (R, H, T, D / H)
        return self.linear_out(layout.gather(out.transpose(1, 2).flatten(2)))  # (N, D)

    def _heads(self, values: Tensor) -> Tensor:
        return values.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (R, H, T, D / H)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if self.implementation == "sdpa":
            return nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale
            )
        shares = (query @ key.transpose(2, 3) * scale + bias).softmax(3)  # (R, H, T_q, T)
        return nn.functional.dropout(shares, dropout, self.training) @ value


def _steps(query: Tensor) -> tuple[int, int]:
    """Rows and queries whose scores are computed at a time."""
    _, heads, longest, _ = query.shape
    whole = heads * longest * 2 * longest
    if whole > MAX_SCORES:
        return 1, max(1, MAX_SCORES // (heads * 2 * longest))
    return max(1, MAX_SCORES // whole), longest


def shifted(scores: Tensor, num_keys: int) -> Tensor:
    """Scores by distance as scores by key.

    Args:
        scores: (R, H, T_q, T_q + T - 1); the distances fall, and the last query's come first.
        num_keys: T.

    Returns:
        (R, H, T_q, T), in which query i takes key j's from column T_q - 1 - i + j; a view.
    """
    queries, width = scores.shape[2:]
    if queries == 1:
        return scores
    return scores.flatten(2)[..., queries - 1 : -1].unflatten(2, (queries, width - 1))[..., :num_keys]


class FrameConv1d(nn.Conv1d):
    """A convolution with a kernel of one, over frames in one row."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, D_in) -> (N, D_out)."""
        return nn.functional.linear(input, self.weight[:, :, 0], self.bias)


class FrameBatchNorm(nn.BatchNorm1d):
    """A batch norm over frames in one row; one frame alone has no variance, and takes that of the past."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        if self.training and len(input) == 1:
            mean, variance = self.running_mean, self.running_var
            return nn.functional.batch_norm(input, mean, variance, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class ConvolutionModule(nn.Module):
    """A gated convolution over time."""

    def __init__(self, hidden_size: int, kernel_size: int) -> None:
        super().__init__()
        # The checkpoints spell it so.
        self.pointwise_cov1 = FrameConv1d(hidden_size, 2 * hidden_size, 1)
        self.depthwise_conv = nn.Conv1d(
            hidden_size, hidden_size, kernel_size, padding=kernel_size // 2, groups=hidden_size
        )
        self.norm = FrameBatchNorm(hidden_size)
        self.pointwise_cov2 = FrameConv1d(hidden_size, hidden_size, 1)

    def forward(self, values: Tensor, layout: FrameLayout) -> Tensor:
        """(N, D) -> (N, D)."""
        values = nn.functional.glu(self.pointwise_cov1(values), dim=1)  # (N, D)
        spread = layout.spread(values).transpose(1, 2)  # (R, D, T)
        values = layout.gather(self.depthwise_conv(spread).transpose(1, 2))  # (N, D)
        return self.pointwise_cov2(nn.functional.silu(self.norm(values)))


class FeedForward(nn.Module):
    """Two linear maps with a rectifier between them."""

    def __init__(self, hidden_size: int, intermediate_size: int, dropout: float) -> None:
        super().__init__()
        self.w_1 = nn.Linear(hidden_size, intermediate_size)
        self.w_2 = nn.Linear(intermediate_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return self.w_2(self.dropout(nn.functional.relu(self.w_1(values))))


class ConformerLayer(nn.Module):
    """Half a feed-forward block, attention, convolution, the other half, and a norm; each block norms its input."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        kernel_size: int,
        *,
        dropout: float,
        attention_dropout: float,
        implementation: str,
    ) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(hidden_size, num_heads, attention_dropout, implementation)
        self.feed_forward = FeedForward(hidden_size, intermediate_size, dropout)
        self.feed_forward_macaron = FeedForward(hidden_size, intermediate_size, dropout)
        self.conv_module = ConvolutionModule(hidden_size, kernel_size)
        self.norm_ff_macaron = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.norm_mha = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.norm_conv = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.norm_ff = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.norm_final = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, positions: Tensor, layout: FrameLayout) -> Tensor:
        """(N, D) and (P, D) -> (N, D)."""
        drop = self.dropout
        values = values + 0.5 * drop(self.feed_forward_macaron(self.norm_ff_macaron(values)))
        values = values + drop(self.self_attn(self.norm_mha(values), positions, layout))
        values = values + drop(self.conv_module(self.norm_conv(values), layout))
        values = values + 0.5 * drop(self.feed_forward(self.norm_ff(values)))
        return self.norm_final(values)
