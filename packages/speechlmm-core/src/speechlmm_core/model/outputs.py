"""What the composite model returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput

from speechlmm_core.features import Features, Loss


@dataclass
class SpeechLMMOutput(ModelOutput):
    """Outputs of one forward pass."""

    loss: Tensor | None = None
    """Scalar: every loss, divided by its own count in this batch and weighted. A trainer uses `losses` instead."""
    losses: dict[str, Loss] | None = None
    """Losses by objective, each a sum with its unit."""
    stages: dict[str, Features] | None = None
    """Outputs of the towers by name; `text_decoder` holds the last hidden states (R, N, D)."""
