"""The loss of one stage of a stack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from speechlmm_adapters.stack.adapter import features_of_stage
from speechlmm_core.features import Features, Loss
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.modules import Objective, TextDecoder

if TYPE_CHECKING:
    from speechlmm_adapters.stack.objective_config import StageObjectiveConfig

INPUT = "{stage}.input"
"""Key of the width that flows into an adapter inside a stack, for the losses of a stack in a stack."""


class StageObjective(Objective):
    """See `StageObjectiveConfig`; the stage's loss is `.model`."""

    config: StageObjectiveConfig

    def __init__(self, config: StageObjectiveConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.label = config.adapter.labels[config.index]
        sizes, key = ctx.stage_sizes, INPUT.format(stage=config.stage)
        encoder = config.stage.removesuffix("_adapter") + "_encoder"
        stack = BuildContext(input_size=sizes.get(key, sizes.get(encoder, 0)), output_size=sizes[config.stage])
        size, reached = config.adapter.sizes(stack)[config.index]
        self.model = config.objective.build(replace(ctx, stage_sizes={**sizes, config.stage: reached, key: size}))

    def load_base_weights(self) -> None:
        """Loads those of the stage's loss."""
        self.model.load_base_weights()

    def reset_buffers(self) -> None:
        """Recomputes those of the stage's loss."""
        self.model.reset_buffers()

    def forward(self, stages: Mapping[str, Features], batch: Mapping[str, Any], text_decoder: TextDecoder) -> Loss:
        """The stage's loss, counted under this objective's name."""
        self.model.name = self.name
        place = self.config.stage
        return self.model({**stages, place: features_of_stage(stages[place], self.label)}, batch, text_decoder)
