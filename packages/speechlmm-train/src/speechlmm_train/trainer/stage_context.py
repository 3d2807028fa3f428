"""Tells a trainer of the stage that it runs."""

from __future__ import annotations

from collections.abc import Sequence

from speechlmm_train.config import RunConfig
from speechlmm_train.parallel_names import Mode
from speechlmm_train.trainer.stage_data import StageData
from speechlmm_train.trainer.trainer import StageContext


def stage_context(
    config: RunConfig, stages: Sequence[StageData], index: int, *, mode: Mode, whole: frozenset[str]
) -> StageContext:
    """What a trainer must know of a stage, but for what its speed is compared with.

    Args:
        config: The run.
        stages: Its stages.
        index: The stage.
        mode: How the model is spread over the processes.
        whole: Components that no stage trains.
    """
    stage, settings, training = stages[index], stages[index].settings, stages[index].settings.training
    weights = {name: objective.weight for name, objective in config.model.all_objectives.items()}
    return StageContext(
        index=index,
        name=settings.name,
        first_total_step=sum(earlier.max_steps for earlier in stages[:index]),
        weights={**weights, **settings.objectives},
        lr_groups=training.lr_groups,
        own_lr_groups=settings.own_lr_groups,
        save=training.save,
        save_total_limit=training.save_total_limit,
        seed=training.seed,
        mixture=stage.mixture,
        mode=mode,
        whole=whole,
        inputs=frozenset(stage.spacers.numbers),
        max_grad_norm=training.max_grad_norm,
        watching=training,
    )
