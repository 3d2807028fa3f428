"""What the composite model returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from speechlmm_core.errors import DataError
from speechlmm_core.features import Features, Loss


@dataclass
class SpeechLMMOutput(ModelOutput):
    """Outputs of one forward pass."""

    loss: Tensor | None = None
    """Scalar: every loss, divided by its own count (`loss_counts`, or that in this batch) and weighted."""
    losses: dict[str, Loss] | None = None
    """Losses by objective, each a sum with its unit."""
    stages: dict[str, Features] | None = None
    """Outputs of the towers by name; `text_decoder` holds the last hidden states (R, N, D)."""


def total_loss(
    losses: Mapping[str, Loss],
    weights: Mapping[str, float],
    batch: Mapping[str, Any],
    counts: Mapping[str, int] | None = None,
) -> Tensor | None:
    """The losses, each divided by its own count, weighted and added up; None where there are none.

    Args:
        losses: By objective.
        weights: By objective.
        batch: The batch, whose `num_items` are the counts.
        counts: Other counts, in their place.

    Raises:
        DataError: The batch does not hold the count of a loss.
    """
    found: Mapping[str, int] = batch.get("num_items", {}) if counts is None else counts
    for name, loss in losses.items():
        if loss.unit not in found:
            raise DataError(
                f"objective {name!r} counts its loss in {loss.unit!r}, which the batch's `num_items` lacks; it has "
                f"{', '.join(found) or 'nothing'}"
            )
    terms = [weights[name] * loss.sum / max(found[loss.unit], 1) for name, loss in losses.items()]
    return torch.stack(terms).sum() if terms else None
