"""Continuous integrate-and-fire.

Paper: Dong and Xu 2020, "CIF: Continuous Integrate-and-Fire for End-to-End Speech Recognition" (arXiv:1905.11235).

Shapes: B batch, T frames, N fired frames, D hidden, V labels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechlmm_adapters.cif.fire import accumulate, count, fire
from speechlmm_adapters.ctc.vocabulary import num_labels
from speechlmm_core.features import Features, zero_padding
from speechlmm_core.interfaces.modules import Adapter
from speechlmm_core.interfaces.objective import can_weigh
from speechlmm_core.lora.weight import effective_weight

if TYPE_CHECKING:
    from speechlmm_adapters.cif.config import CIFAdapterConfig
    from speechlmm_core.interfaces.context import BuildContext


class CIFAdapter(Adapter):
    """See `CIFAdapterConfig`; the network that predicts the weights is `.model`.

    A fired frame is the sum of its frames times their weights, which add up to the threshold (as in the paper, where
    the threshold is 1); it is then projected to the width that is wanted.
    """

    config: CIFAdapterConfig

    def __init__(self, config: CIFAdapterConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.frame_rate = ctx.frame_rate
        self.model = WeightPredictor(ctx.input_size, config.hidden_size or ctx.input_size, config.kernel_size)
        self.projection = nn.Linear(ctx.input_size, ctx.output_size)
        labels = num_labels(config.ctc_vocabulary, config.ctc_characters, ctx.vocab_size)
        self.ctc_head = nn.Linear(ctx.input_size, labels, bias=False) if can_weigh(config.ctc_loss_weight) else None
        if ctx.frame_rate:
            # The weight that fires the estimated number of frames, if every frame has it.
            weight = float(config.output_frame_rate(ctx.frame_rate) / ctx.frame_rate) * config.firing_threshold
            self.model.set_weight(min(max(weight, 0.01), 0.5))

    def forward(self, features: Features, target_lengths: Tensor | None = None) -> Features:
        """Adapts (B, T, D_in) to (B, N, D_out); the largest number of fired frames is read from the device.

        Args:
            features: (B, T, D_in).
            target_lengths: (B,) tokens of each medium's transcript, -1 where it is not known. The weights are scaled
                to fire as many frames, within the bound.

        Returns:
            (B, N, D_out). Its extras: `quantity` (B,), the frames that the unscaled weights would fire, and where the
            loss `ctc` has a weight, `ctc_frames` (B, T, D_in), `ctc_lengths` (B,) and `ctc_weight` (V, D_in).
        """
        config = self.config
        values = zero_padding(features.values, features.lengths)
        weights = self.model(values).masked_fill(~features.mask(), 0)  # (B, T)
        bound = config.max_output_lengths(features.lengths, self.frame_rate)  # (B,)
        sums, quantity = accumulate(weights, config.firing_threshold, target_lengths, bound)
        residual = None if self.training else config.residual_threshold / config.firing_threshold
        lengths = torch.minimum(count(sums, residual), bound)
        num_frames = int(lengths.max()) if lengths.numel() else 0
        fired = fire(values, sums, lengths, num_frames) * config.firing_threshold  # (B, N, D_in)
        extras = {"quantity": quantity.to(weights.dtype)}
        if self.ctc_head is not None:
            own = {"ctc_frames": values, "ctc_lengths": features.lengths, "ctc_weight": effective_weight(self.ctc_head)}
            extras.update(own)
        return Features(zero_padding(self.projection(fired), lengths), lengths, extras)  # (B, N, D_out)


class WeightPredictor(nn.Module):
    """A weight from 0 to 1 for each frame: convolution, layer norm, ReLU, a linear layer and the logistic function."""

    def __init__(self, size: int, hidden_size: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(size, hidden_size, kernel_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.out = nn.Linear(hidden_size, 1)
        self.around = ((kernel_size - 1) // 2, kernel_size // 2)

    def set_weight(self, weight: float) -> None:
        """Makes all weights lie around ``weight``."""
        nn.init.constant_(self.out.bias, math.log(weight / (1 - weight)))

    def forward(self, values: Tensor) -> Tensor:
        """Weights (B, T), at least fp32, of frames (B, T, D) whose padding is zero."""
        if not values.shape[1]:
            return values.new_zeros(values.shape[:2], dtype=_wide(values.dtype))
        hidden = self.conv(F.pad(values.transpose(1, 2), self.around)).transpose(1, 2)  # (B, T, H)
        logits = self.out(torch.relu(self.norm(hidden)))[..., 0]  # (B, T)
        return torch.sigmoid(logits.to(_wide(logits.dtype)))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
