"""CTC with a head that an adapter brings.

Paper: Graves et al. 2006, "Connectionist temporal classification", doi:10.1145/1143844.1143891.

Shapes: B media, T frames, U target labels, V labels, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from speechlmm_adapters.ctc.vocabulary import blank_label
from speechlmm_core.features import Features, Loss, by_sample, length_mask
from speechlmm_core.interfaces.modules import Objective, TextDecoder
from speechlmm_core.losses.ctc import ctc_loss, ctc_loss_restricted
from speechlmm_core.objectives.ctc.objective import FULL_VOCABULARY

if TYPE_CHECKING:
    from speechlmm_adapters.ctc.objective_config import AdapterCTCObjectiveConfig


class AdapterCTCObjective(Objective):
    """See `AdapterCTCObjectiveConfig`."""

    config: AdapterCTCObjectiveConfig

    def __init__(self, config: AdapterCTCObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        self.full_vocabulary = FULL_VOCABULARY

    def forward(self, stages: Mapping[str, Features], batch: Mapping[str, Any], text_decoder: TextDecoder) -> Loss:
        """The loss in the unit `<name>_targets`.

        Args:
            stages: The adapter's extras: `ctc_frames` (B, T, D), `ctc_lengths` (B,), `ctc_weight` (V, D), and
                `ctc_logsumexp` (B, T) where the adapter has computed that of the frames' logits.
            batch: ``targets[name]`` holds `ids` (B, U), `lengths` (B,) and `valid` (B,) bool.
            text_decoder: Not used.
        """
        extras = stages[self.config.stage].extras
        frames, lengths, weight = extras["ctc_frames"], extras["ctc_lengths"], extras["ctc_weight"]
        targets = batch["targets"][self.name]
        ids, valid, unit = targets["ids"], targets["valid"], f"{self.name}_targets"
        input_name = self.config.stage.rpartition("_")[0]
        if ids.numel() == 0 or frames.numel() == 0:
            # A zero that still depends on the adapter, so that no rank waits for a gradient.
            nothing = (frames.flatten()[:0].sum() + weight.flatten()[:0].sum()).float()
            return Loss(nothing, unit, by_sample(nothing.new_zeros(len(valid)), batch, input_name))
        target_lengths = torch.where(valid, targets["lengths"], 0)
        frames = torch.where(length_mask(lengths, frames.shape[1])[..., None], frames, 0)  # (B, T, D)
        blank = blank_label(self.config.vocabulary, len(weight))
        if len(weight) > self.full_vocabulary:
            losses = ctc_loss_restricted(
                frames,
                lengths,
                ids,
                target_lengths,
                weight=weight,
                blank=weight[blank],
                blank_in_weight=True,
                logsumexp=extras.get("ctc_logsumexp"),
            )
        else:
            losses = ctc_loss(F.linear(frames, weight.to(frames.dtype)), lengths, ids, target_lengths, blank=blank)
        return Loss(losses.sum().float(), unit, by_sample(losses.float(), batch, input_name))
