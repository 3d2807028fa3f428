"""Frame stacking and a multi-layer perceptron.

Ma et al., 2024, "An Embarrassingly Simple Approach for LLM with Strong ASR Capacity" (arXiv:2402.08846), for frame
stacking before a small perceptron.

Shapes: B batch, T frames, D hidden, S stacked frames.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn

from speechlmm_adapters.activation import activation
from speechlmm_core.features import Features, zero_padding
from speechlmm_core.interfaces.modules import Adapter

if TYPE_CHECKING:
    from speechlmm_adapters.mlp.config import MLPAdapterConfig
    from speechlmm_core.interfaces.context import BuildContext


class MLPAdapter(Adapter):
    """See `MLPAdapterConfig`; the perceptron is `.model`."""

    config: MLPAdapterConfig

    def __init__(self, config: MLPAdapterConfig, ctx: BuildContext) -> None:
        """Builds the layers between the widths of the context.

        Raises:
            ConfigError: transformers knows no such activation.
        """
        super().__init__()
        self.config = config
        width = ctx.input_size * config.stack
        sizes = [width, *[config.hidden_size] * (config.num_layers - 1), ctx.output_size]
        layers: list[nn.Module] = [nn.LayerNorm(width)] if config.layer_norm else []
        for number, (size_in, size_out) in enumerate(pairwise(sizes)):
            if number:
                layers += [nn.LayerNorm(size_in)] if config.hidden_layer_norm else []
                layers += [activation(config.activation), nn.Dropout(config.dropout)]
            layers.append(nn.Linear(size_in, size_out))
        layers += [nn.LayerNorm(ctx.output_size)] if config.output_layer_norm else []
        self.model = nn.Sequential(*layers)
        self.residual = nn.Linear(width, ctx.output_size, bias=False) if config.residual == "linear" else None

    def forward(self, features: Features, target_lengths: Tensor | None = None) -> Features:
        """Adapts (B, T, D_in) to (B, ceil(T / S), D_out); padding comes out as zeros."""
        stack = self.config.stack
        values = zero_padding(features.values, features.lengths)
        batch, frames, width = values.shape
        missing = -frames % stack
        if missing:
            values = nn.functional.pad(values, (0, 0, 0, missing))  # (B, T', D_in)
        stacked = values.reshape(batch, (frames + missing) // stack, width * stack)  # (B, T_out, S * D_in)
        adapted = self.model(stacked)  # (B, T_out, D_out)
        if self.residual is not None:
            adapted = adapted + self.residual(stacked)
        elif self.config.residual == "interpolation":
            # Each frame as a row of one channel: without frames, torch takes no rows, but not no channels.
            rows = stacked.flatten(0, 1)[:, None]  # (B * T_out, 1, S * D_in)
            adapted = adapted + nn.functional.interpolate(rows, adapted.shape[2], mode="linear").view_as(adapted)
        lengths = -(-features.lengths // stack)
        return Features(zero_padding(adapted, lengths), lengths)
