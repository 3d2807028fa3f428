"""CIF's quantity loss.

Paper: Dong and Xu 2020, "CIF: Continuous Integrate-and-Fire for End-to-End Speech Recognition" (arXiv:1905.11235).

Shapes: B media.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from speechlmm_core.features import Features, Loss, by_sample
from speechlmm_core.interfaces.modules import Objective, TextDecoder

if TYPE_CHECKING:
    from speechlmm_adapters.cif.objective_config import CIFQuantityObjectiveConfig


class CIFQuantityObjective(Objective):
    """See `CIFQuantityObjectiveConfig`."""

    config: CIFQuantityObjectiveConfig

    def __init__(self, config: CIFQuantityObjectiveConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, stages: Mapping[str, Features], batch: Mapping[str, Any], text_decoder: TextDecoder) -> Loss:
        """The sum over media of |frames - tokens|, in the unit `<name>_valid`.

        Args:
            stages: The adapter's extra `quantity` (B,).
            batch: ``targets[name]`` holds `lengths` (B,) and `valid` (B,) bool.
            text_decoder: Not used.
        """
        quantity = stages[self.config.stage].extras["quantity"].float()
        targets = batch["targets"][self.name]
        distance = (quantity - targets["lengths"]).abs()  # (B,)
        distance = torch.where(targets["valid"], distance, 0)
        shares = by_sample(distance, batch, self.config.stage.rpartition("_")[0])
        return Loss(distance.sum(), f"{self.name}_valid", shares)
