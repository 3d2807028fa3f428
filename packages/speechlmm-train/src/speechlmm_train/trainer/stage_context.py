"""What a trainer must know of the stage that it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from speechlmm_core.interfaces.objective import Schedule
from speechlmm_train.config import RunConfig
from speechlmm_train.parallel_names import Mode
from speechlmm_train.trainer.meter import Utilisation
from speechlmm_train.trainer.mixture import Mixture
from speechlmm_train.trainer.stage_data import StageData
from speechlmm_train.watching_config import Watching


@dataclass(frozen=True)
class StageContext:
    """What a trainer must know about the stage that it runs."""

    index: int
    name: str
    first_total_step: int
    """Steps that earlier stages have done."""
    weights: Mapping[str, float | Schedule]
    """Weights of the objectives."""
    lr_groups: Mapping[str, float] = field(default_factory=dict[str, float])
    own_lr_groups: bool = True
    """Whether each of them has to match something that the stage trains."""
    save: Literal["full", "trainable"] = "full"
    save_total_limit: int | None = None
    seed: int = 0
    mixture: Mixture | None = None
    """Counts what the plan draws; None where that is not logged."""
    mode: Mode = "none"
    """How the model is spread over the processes."""
    whole: frozenset[str] = frozenset()
    """Components that no stage trains; they stay whole in every process."""
    inputs: frozenset[str] = frozenset()
    """Inputs that the stage's data have."""
    max_grad_norm: float = 0.0
    """Norm to which gradients are clipped where the trainer does it in DeepSpeed's place."""
    watching: Watching = field(default_factory=Watching)
    """When a training that goes wrong stops."""
    utilisation: Utilisation | None = None
    """What the speed is compared with; None where that is not known."""


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
