"""What each stage is trained on: its examples, their sizes and the batch plan. All faults come up before training."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ConcatExamples
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.index.sizes import Lengths
from speechlmm_core.data.lengths import measure
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.augment.augmenter import Augmenter
from speechlmm_train.batching.loader import TrainingBatches
from speechlmm_train.batching.mix import Group, Mix
from speechlmm_train.batching.plan import BatchPlan
from speechlmm_train.batching.rows import digest_of_rows
from speechlmm_train.batching.spacers import Spacers
from speechlmm_train.config import RunConfig
from speechlmm_train.data_config import DataConfig
from speechlmm_train.stage_config import DEFAULT_TOKEN_BUDGET, ResolvedStage
from speechlmm_train.trainer.evaluation_plan import EvaluationPlan, plan_evaluation
from speechlmm_train.trainer.mixture import Mixture, groups_of
from speechlmm_train.trainer.open_sets import OpenedSets, in_a_row, open_sets
from speechlmm_train.trainer.oversized import leave_out

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageData:
    """A stage with its data."""

    settings: ResolvedStage
    processor: SpeechLMMProcessor
    examples: Sequence[Example]
    indices: NDArray[np.int64]
    """Examples that take part."""
    plan: BatchPlan
    mixture: Mixture
    evaluation: EvaluationPlan | None
    """What the stage is evaluated on; None where it is not."""
    max_steps: int
    world_size: int
    inputs: NDArray[np.uint32]
    """(N,) the model's inputs that each example has media of, a bit each."""
    augment: Augmenter | None = None
    """What changes the media of training; evaluation never goes through it."""
    skipped: Sequence[int] = ()
    """Numbers of the examples that are longer than a budget and are left out, with `oversized: skip`."""

    @cached_property
    def spacers(self) -> Spacers:
        """Media for micro-batches that have none of an input which others have."""
        return Spacers.of(self.processor, self.examples, self.indices, self.plan.frames, self.inputs)

    def batches(self, start_step: int, *, rank: int) -> TrainingBatches:
        """A rank's micro-batches from a step on."""
        spec = self.settings.data.data_config_path
        return TrainingBatches(
            self.examples,
            self.processor,
            self.plan,
            indices=self.indices,
            rank=rank,
            world_size=self.world_size,
            start_step=start_step,
            num_workers=self.settings.training.num_workers,
            augment=self.augment,
            advice=None if spec is None else f"`speechlmm-train prepare {spec} --check full` finds all such files",
            # With one process too, where several could share a step: its dropout would be another without them.
            spacers=self.spacers if self.plan.micro_batches_per_step > 1 else None,
        )


@dataclass(frozen=True)
class _Opened:
    sets: OpenedSets
    train: ConcatExamples
    lengths: Lengths
    groups: Sequence[Group]
    members: NDArray[np.int64]
    """(N,) each example's group."""
    augment: Augmenter | None


def open_stages(config: RunConfig, processor: SpeechLMMProcessor, *, base: Path, world_size: int) -> list[StageData]:
    """Opens and measures the data of all stages, each dataset once.

    Args:
        config: The run.
        processor: Measures examples, and later makes batches of them.
        base: Folder where relative paths start.
        world_size: Number of processes.

    Raises:
        DataError: Data are wrong; the faults of all stages together.
        ConfigError: The sizes of a stage contradict each other.
    """
    settings = config.resolved_stages()
    faults = Faults()
    opened: dict[str, _Opened] = {}
    for stage in settings:
        key = stage.data.model_dump_json(include=_SOURCES)
        if key not in opened:
            try:
                opened[key] = _open(stage.data, processor, base)
            except DataError as exc:
                faults.extend(exc)
    faults.raise_if_any()
    if config.training.eval_steps and not any(one.sets.evaluation or one.sets.guard for one in opened.values()):
        raise ConfigError("training.eval_steps: data.data_config_path names nothing to evaluate on")
    stages: list[StageData] = []
    for index, stage in enumerate(settings):
        own = opened[stage.data.model_dump_json(include=_SOURCES)]
        stages.append(_plan(stage, own, processor, epochs=config.training.num_epochs, index=index, ranks=world_size))
    return stages


_SOURCES = {"train", "eval", "guard", "data_config_path", "index_dir", "augment"}
"""What decides the examples and their lengths."""


def _open(data: DataConfig, processor: SpeechLMMProcessor, base: Path) -> _Opened:
    faults = Faults()
    sets = augment = None
    try:
        augment = Augmenter.open(data.augment, processor.inputs, base=base)
    except DataError as exc:
        faults.extend(exc)
    try:
        sets = open_sets(data, base)
    except DataError as exc:
        faults.extend(exc)
    faults.raise_if_any()
    assert sets is not None
    train = in_a_row(sets.train)
    assert train is not None
    lengths = measure(train, processor, max_length=augment.max_length if augment else None)
    return _Opened(sets, train, lengths, *groups_of(sets.train), augment)


def _plan(
    stage: ResolvedStage, own: _Opened, processor: SpeechLMMProcessor, *, epochs: float | None, index: int, ranks: int
) -> StageData:
    training, data = stage.training, stage.data
    indices, skipped = leave_out(stage, own.lengths, _within(stage, own.lengths), own.train.place)
    positions = own.lengths.positions[indices]
    _warn_of_the_empty(stage, own, indices)
    mix = Mix.of(
        own.groups,
        own.members[indices],
        positions,
        mixing=data.mixing,
        task_weights=data.task_weights,
        dataset_weights=data.dataset_weights,
        repeat=data.repeat,
    )
    tokens = training.token_budget
    if tokens == "auto":  # not found yet: what holds every example stands for it
        tokens = max(DEFAULT_TOKEN_BUDGET, int(positions.max()))
    plan = BatchPlan(
        positions,
        own.lengths.frames[indices],
        token_budget=tokens,
        frame_budget=training.frame_budget,
        batch_size=training.per_device_train_batch_size,
        micro_batches_per_step=training.micro_batches_per_step,
        seed=int(np.random.SeedSequence([training.seed, index]).generate_state(1)[0]),
        window=data.batch_window,
        packed=training.packed,
        oversized="error" if data.oversized == "skip" else data.oversized,
        place=lambda number: own.train.place(int(indices[number])),
        mix=mix,
        digest_of_rows=partial(digest_of_rows, own.train, indices),
    )
    plan.check_world_size(ranks)
    steps = stage.max_steps if stage.max_steps is not None else math.ceil((epochs or 1) * plan.epoch_steps(0))
    mixture = Mixture(plan, own.lengths.seconds[indices])
    evaluation = plan_evaluation(stage, own.sets)
    inputs = own.lengths.inputs[indices]
    return StageData(
        stage, processor, own.train, indices, plan, mixture, evaluation, steps, ranks, inputs, own.augment, skipped
    )


def _warn_of_the_empty(stage: ResolvedStage, own: _Opened, indices: NDArray[np.int64]) -> None:
    counts = np.bincount(own.members[indices], minlength=len(own.groups))
    for group in [group for group, count in zip(own.groups, counts, strict=True) if not count]:
        name = f"{group.dataset} ({group.task})"
        logger.warning("stage %r: no example of %s has a duration that takes part in training", stage.name, name)


def _within(stage: ResolvedStage, lengths: Lengths) -> NDArray[np.int64]:
    """Examples whose audio is neither too short nor too long; text alone always takes part."""
    data = stage.data
    longest = math.inf if data.max_duration_s is None else data.max_duration_s
    kept = (lengths.frames == 0) | ((lengths.seconds >= data.min_duration_s) & (lengths.seconds <= longest))
    if not kept.any():
        raise DataError(
            f"stage {stage.name!r}: none of the {len(lengths)} examples lies between {data.min_duration_s:g} and "
            f"{longest:g} s; they last {lengths.seconds.min():.2f} to {lengths.seconds.max():.2f} s"
        )
    return np.flatnonzero(kept)
