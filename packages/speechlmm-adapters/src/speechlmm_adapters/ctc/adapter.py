"""Compression by CTC: runs of frames with the same label become one frame.

Papers: Graves et al. 2006, "Connectionist temporal classification", doi:10.1145/1143844.1143891; Gaido et al. 2021,
"CTC-based Compression for Direct Speech Translation" (arXiv:2102.01578), for the merging of runs and its weights.

Shapes: B batch, T frames, N merged frames, D hidden, V labels.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechlmm_adapters.ctc.vocabulary import blank_label, num_labels
from speechlmm_adapters.segments import sum_segments
from speechlmm_core.features import Features, zero_padding
from speechlmm_core.interfaces.modules import Adapter
from speechlmm_core.interfaces.objective import can_weigh
from speechlmm_core.lora.weight import effective_weight
from speechlmm_core.losses.logsumexp import chunked_argmax, chunked_argmax_logsumexp

if TYPE_CHECKING:
    from speechlmm_adapters.ctc.config import CTCAdapterConfig
    from speechlmm_core.interfaces.context import BuildContext


logger = logging.getLogger(__name__)


class CTCAdapter(Adapter):
    """See `CTCAdapterConfig`; the head that labels frames is `.model`. Merged frames are projected."""

    config: CTCAdapterConfig

    def __init__(self, config: CTCAdapterConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.frame_rate = ctx.frame_rate
        labels = num_labels(config.vocabulary, config.characters, ctx.vocab_size)
        self.blank = blank_label(config.vocabulary, labels)
        self.model = nn.Linear(ctx.input_size, labels, bias=False)
        self.projection = nn.Linear(ctx.input_size, ctx.output_size)
        self.learns = can_weigh(config.ctc_loss_weight)
        if not self.learns and config.merge == "mean":
            self.model.requires_grad_(False)
            _report_fixed_head(ctx.component)

    def forward(self, features: Features, target_lengths: Tensor | None = None) -> Features:
        """Adapts (B, T, D_in) to (B, N, D_out); the largest number of runs is read from the device.

        Returns:
            (B, N, D_out). Its extras are for the loss `ctc`: `ctc_frames` (B, T, D_in), `ctc_lengths` (B,),
            `ctc_weight` (V, D_in) and `ctc_logsumexp` (B, T), where that is known.
        """
        values = zero_padding(features.values, features.lengths)
        B, T, D = values.shape
        flat, weight = values.reshape(B * T, D), effective_weight(self.model)
        logsumexp: Tensor | None = None
        if self.config.merge != "mean" or (self.training and self.learns):
            labels, logsumexp = chunked_argmax_logsumexp(flat, weight)
            labels, logsumexp = labels.view(B, T), logsumexp.view(B, T)
        else:
            labels = chunked_argmax(flat, weight).view(B, T)
        mask = features.mask()
        runs, used = number_runs(labels, mask, self.blank if self.config.drop_blanks else None)
        bound = self.config.max_output_lengths(features.lengths, self.frame_rate)  # (B,)
        runs, lengths = group_runs(runs, used, bound)
        num_segments = int(lengths.max()) if lengths.numel() else 0
        if num_segments:
            shares = self._shares(values, labels, logsumexp, weight).masked_fill(~used, 0)  # (B, T)
            totals = shares.new_zeros(B, num_segments).scatter_add(1, runs, shares)  # (B, N)
            shares = shares / totals.clamp(min=1e-30).gather(1, runs)
            merged = sum_segments(values, runs, shares, num_segments)  # (B, N, D_in)
        else:
            merged = values[:, :0]  # (B, 0, D_in)
        extras: dict[str, Tensor] = {}
        if self.learns:
            extras = {"ctc_frames": values, "ctc_lengths": features.lengths, "ctc_weight": weight}
            if logsumexp is not None:
                extras["ctc_logsumexp"] = logsumexp
        return Features(zero_padding(self.projection(merged), lengths), lengths, extras)  # (B, N, D_out)

    def _shares(self, values: Tensor, labels: Tensor, logsumexp: Tensor | None, weight: Tensor) -> Tensor:
        """(B, T) what each frame counts for in its run, at least in fp32."""
        if logsumexp is None or self.config.merge == "mean":
            wide = torch.float64 if values.dtype == torch.float64 else torch.float32
            return torch.ones_like(labels, dtype=wide)
        scores = (values * F.embedding(labels, weight).to(values.dtype)).sum(2)  # (B, T)
        probabilities = (scores.to(logsumexp.dtype) - logsumexp).exp()
        return probabilities.exp() if self.config.merge == "softmax" else probabilities


@cache
def _report_fixed_head(component: str) -> None:
    """Once a component."""
    logger.warning(
        "%s: with `ctc_loss_weight: 0` and `merge: mean` nothing teaches the head that labels frames, and it is frozen "
        "as it is; unless a checkpoint brings a trained one, frames are merged by random labels",
        component or "the CTC adapter",
    )


def number_runs(labels: Tensor, mask: Tensor, dropped: int | None) -> tuple[Tensor, Tensor]:
    """The run that each frame belongs to.

    Args:
        labels: (B, T).
        mask: (B, T), true on valid frames, which come first.
        dropped: Label whose runs are left out.

    Returns:
        (B, T) numbers from 0, never falling, and (B, T) which frames belong to a run; the others bear the number of
        the run before them.
    """
    begins = torch.ones_like(mask)
    begins[:, 1:] = labels[:, 1:] != labels[:, :-1]
    used = mask if dropped is None else mask & (labels != dropped)
    return ((begins & used).long().cumsum(1) - 1).clamp(min=0), used


def group_runs(runs: Tensor, used: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Joins every ceil(runs / bound) neighbours.

    Args:
        runs: (B, T), from `number_runs`.
        used: (B, T), from `number_runs`.
        bound: (B,) runs that there may be.

    Returns:
        (B, T) numbers of the groups, and (B,) how many there are.
    """
    if not runs.shape[1]:
        return runs, torch.zeros_like(bound)
    found = torch.where(used.any(1), runs[:, -1] + 1, 0)  # (B,)
    size = (-(-found // bound.clamp(min=1))).clamp(min=1)
    return runs // size[:, None], -(-found // size)
