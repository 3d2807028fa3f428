"""Next-token prediction over the supervised positions, without ever holding all logits.

Shapes: R rows, N positions a row, M supervised positions, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechlmm_core.features import Features, Loss, by_sample
from speechlmm_core.interfaces.modules import Objective, TextDecoder
from speechlmm_core.losses.chunked_ce import chunked_cross_entropies
from speechlmm_core.losses.logits import logit_transform
from speechlmm_core.objectives.next_token.config import NextTokenObjectiveConfig


class NextTokenObjective(Objective):
    """Sum of the supervised tokens' cross-entropies; the collator says which hidden state predicts which token."""

    def __init__(self, config: NextTokenObjectiveConfig) -> None:
        super().__init__()
        self.config: NextTokenObjectiveConfig = config

    def forward(self, stages: Mapping[str, Features], batch: Mapping[str, Any], text_decoder: TextDecoder) -> Loss:
        """The loss in the unit `supervised_tokens`.

        Args:
            stages: `text_decoder` holds the last hidden states (R, N, D).
            batch: `supervised` holds `positions` (M,), flat, and `ids` (M,).
            text_decoder: For its head, and the scale and cap of its logits.
        """
        hidden = stages["text_decoder"].values.flatten(0, 1)  # (R*N, D)
        hidden = hidden.index_select(0, batch["supervised"]["positions"])  # (M, D)
        transform = logit_transform(text_decoder)
        if transform.scale != 1:
            hidden = hidden * transform.scale
        loss, losses = chunked_cross_entropies(
            hidden,
            text_decoder.output_weight,
            batch["supervised"]["ids"],
            softcap=transform.softcap,
            label_smoothing=self.config.label_smoothing,
        )
        return Loss(loss, "supervised_tokens", by_sample(losses, batch, "supervised"))
