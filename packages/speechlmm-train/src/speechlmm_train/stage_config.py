# pyright: strict
"""The `stages:` of a run: what each of them changes, and what it is when that is laid over the rest."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.interfaces.objective import Schedule
from speechlmm_train.data_config import DataConfig, Positive, Rate, Section
from speechlmm_train.restarts_config import Restarts
from speechlmm_train.sizes_config import Sizes
from speechlmm_train.training_config import Groups, TrainingConfig

DEFAULT_TOKEN_BUDGET = 8192
"""Positions in a micro-batch where the configuration does not bound them."""


def _rising(weight: float | Schedule) -> float | Schedule:
    if isinstance(weight, list):
        points = [point[0] for point in weight]
        falls = any(right < left for left, right in pairwise(points))
        if not weight or falls or any(not 0 <= at <= 1 or value < 0 for at, value in weight):
            raise PydanticCustomError(
                "schedule", "expected points [progress, weight] with progress rising in 0..1 and no negative weight", {}
            )
    return weight


Weight = Annotated[Rate | Schedule, AfterValidator(_rising)]


class StageConfig(Sizes, Restarts):
    """One stage of a training: what differs from `training` while it lasts; null leaves a value to `training`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    """Name of the stage, for logs."""
    max_steps: Positive
    """Optimiser steps of the stage."""
    data: DataConfig | None = None
    """The stage's own data; what it leaves out is as in the run's `data`."""
    trainable_modules: list[str] | None = None
    """The only parts that are trained, in place of `freeze_modules`."""
    freeze_modules: list[str] | None = None
    """Parts of the model that are not trained, by module name or glob."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate."""
    lr_scheduler_type: str | None = None
    """Shape of the learning rate over the stage's steps (`linear`, `cosine`, `constant_with_warmup`, …)."""
    warmup_steps: Rate | None = None
    """Steps until the peak; below 1, a fraction of the stage's steps."""
    lr_groups: Groups | None = None
    """Learning rates of parts of the model, by module name or glob (`audio_encoder: 1e-4`)."""
    weight_decay: Rate | None = None
    """Weight decay, on matrices only."""
    max_grad_norm: Rate | None = None
    """Gradients are clipped to this norm; 0 for no clipping."""
    micro_batches_per_step: Positive | None = None
    """Micro-batches in the global batch of a step, over all processes."""
    eval_steps: Positive | None = None
    """Steps between two evaluations by generation."""
    metric_for_best_model: str | None = None
    """Figure that decides which of the stage's checkpoints is the best."""
    early_stopping_patience: Positive | None = None
    """Evaluations in a row without an improvement after which the stage ends, and the next begins."""
    objectives: dict[str, Weight] = Field(default_factory=dict[str, Weight])
    """Weights of training objectives for this stage; progress in a schedule is that of the stage."""

    @model_validator(mode="after")
    def _one_way_to_freeze(self) -> StageConfig:
        if self.freeze_modules is not None and self.trainable_modules is not None:
            raise PydanticCustomError("freezing", "give either freeze_modules or trainable_modules, not both", {})
        return self


OVERRIDABLE = sorted({*TrainingConfig.model_fields} & {*StageConfig.model_fields} - {"max_steps"})
"""What a stage may set for itself."""


class ResolvedStage(Section):
    """A stage as it is run."""

    name: str
    max_steps: int | None
    data: DataConfig
    training: TrainingConfig
    trainable_modules: list[str] | None
    objectives: dict[str, Weight]
    own_lr_groups: bool
    """Whether `lr_groups` was given for this stage, so that each of them has to match something that it trains."""


def lay_over(data: DataConfig, own: DataConfig | None) -> DataConfig:
    """A stage's data: its own fields, and the run's where it leaves them out.

    Raises:
        ValidationError: The two contradict each other.
    """
    if own is None:
        return data
    given = own.model_fields_set
    # Sets and the file that names sets stand in for each other: whichever the stage gives holds.
    sets = {"train", "eval", "guard"}
    hidden = (
        sets if own.data_config_path else {"data_config_path"} if own.train or own.eval or own.guard else set[str]()
    )
    fields = [name for name in DataConfig.model_fields if name not in given and name not in hidden]
    return DataConfig.model_validate(
        {name: getattr(data, name) for name in fields} | {name: getattr(own, name) for name in given}
    )


def resolve(stage: StageConfig, *, data: DataConfig, training: TrainingConfig, single: bool) -> ResolvedStage:
    """A stage laid over the run's sections.

    Args:
        stage: The stage.
        data: The run's data.
        training: The run's `training`.
        single: Whether the run has no stages, and this one stands for it.
    """
    own = {key: getattr(stage, key) for key in OVERRIDABLE if getattr(stage, key) is not None}
    base = training
    if "per_device_train_batch_size" in own:
        base = base.model_copy(update={"token_budget": None, "frame_budget": None})
    elif "token_budget" in own or "frame_budget" in own:
        base = base.model_copy(update={"per_device_train_batch_size": None})
    laid = base.model_copy(update=own)
    if not (laid.token_budget or laid.per_device_train_batch_size):
        # Text has no frames, so that a frame budget alone bounds nothing there.
        laid = laid.model_copy(update={"token_budget": max(DEFAULT_TOKEN_BUDGET, laid.frame_budget or 0)})
    return ResolvedStage(
        name=stage.name,
        max_steps=None if single and training.num_epochs else stage.max_steps,
        data=lay_over(data, stage.data),
        training=laid,
        trainable_modules=stage.trainable_modules,
        objectives=stage.objectives,
        own_lr_groups=single or stage.lr_groups is not None,
    )
