"""Strided convolutions over frames.

Shapes: B batch, T frames, D hidden.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn

from speechlmm_adapters.activation import activation
from speechlmm_core.features import Features, zero_padding
from speechlmm_core.interfaces.modules import Adapter

if TYPE_CHECKING:
    from speechlmm_adapters.conv.config import ConvAdapterConfig
    from speechlmm_core.interfaces.context import BuildContext


class ConvLayer(nn.Module):
    """One convolution over padded rows, each of which sees nothing but zeros beyond its end."""

    def __init__(self, size_in: int, size_out: int, kernel_size: int, stride: int, before: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(size_in, size_out, kernel_size, stride)
        self.before = before
        """Zeros before the first frame."""

    def forward(self, values: Tensor, lengths: Tensor, num_frames: int) -> Tensor:
        """(B, T, D_in) -> (B, T_out, D_out).

        Args:
            values: (B, T, D_in).
            lengths: (B,) valid frames.
            num_frames: Frames that come out, T_out.
        """
        conv = self.conv
        # At least one window, so that a batch without frames still depends on the weights.
        needed = (max(num_frames, 1) - 1) * conv.stride[0] + conv.kernel_size[0]
        values = zero_padding(values, lengths).transpose(1, 2)  # (B, D_in, T)
        values = nn.functional.pad(values, (self.before, needed - self.before - values.shape[2]))
        return conv(values).transpose(1, 2)[:, :num_frames]  # (B, T_out, D_out)


class ConvAdapter(Adapter):
    """See `ConvAdapterConfig`; the convolutions are `.model`."""

    config: ConvAdapterConfig

    def __init__(self, config: ConvAdapterConfig, ctx: BuildContext) -> None:
        """Builds the convolutions between the widths of the context.

        Raises:
            ConfigError: transformers knows no such activation.
        """
        super().__init__()
        self.config = config
        count, same = len(config.strides), config.padding == "same"
        hidden = config.hidden_size or ctx.input_size
        sizes = [ctx.input_size, *[hidden] * (count - 1), ctx.output_size]
        kernels = zip(pairwise(sizes), config.kernel_sizes, config.strides, strict=True)
        layers = [
            ConvLayer(*size, kernel, stride, (kernel - 1) // 2 if same else 0) for size, kernel, stride in kernels
        ]
        kernel = config.residual_kernel_size
        residual = [ConvLayer(sizes[1], sizes[1], kernel, 1, kernel // 2) for _ in range(config.num_residual_layers)]
        self.strided = [True, *[False] * len(residual), *[True] * (count - 1)]
        self.model = nn.ModuleList([layers[0], *residual, *layers[1:]])
        norms = [nn.LayerNorm(layer.conv.out_channels) for layer in [layers[0], *residual, *layers[1:]]]
        self.norms = nn.ModuleList(norms if config.layer_norm else [nn.Identity() for _ in norms])
        self.activation = activation(config.activation)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Features, target_lengths: Tensor | None = None) -> Features:
        """Adapts (B, T, D_in) to (B, T_out, D_out); padding comes out as zeros."""
        values, lengths = features.values, features.lengths
        after = zip(self.config.layer_lengths(lengths), self.config.layer_lengths(values.shape[1]), strict=True)
        last = len(self.strided) - 1
        for number, (layer, norm, strided) in enumerate(zip(self.model, self.norms, self.strided, strict=True)):
            lengths_out, num_frames = next(after) if strided else (lengths, values.shape[1])
            out = norm(layer(values, lengths, num_frames))  # (B, T_out, D_out)
            if number < last:
                out = self.dropout(self.activation(out))
            values, lengths = (out if strided else values + out), lengths_out
        return Features(zero_padding(values, lengths), lengths)
