"""What a run did, as it is told at its end and kept in its folder."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speechlmm_train.trainer.best import RunState
from speechlmm_train.trainer.callbacks import Reporter
from speechlmm_train.trainer.checkpoints import Progress
from speechlmm_train.trainer.stage_data import StageData


@dataclass(frozen=True)
class RunReport:
    """What a run did."""

    model_path: Path
    steps: int
    """Optimiser steps that all stages have done, the `steps_before` among them."""
    seconds: float
    """Wall-clock time of this process; a resumed run counts only its own."""
    figures: dict[str, float] = field(default_factory=dict)
    """The last figures that were logged."""
    planned_steps: int = 0
    """Steps that were asked for; a stage may have ended early."""
    steps_before: int = 0
    """Steps that had been done where this process went on."""
    best: dict[str, Any] = field(default_factory=dict)
    """The best checkpoint of each stage, with the figure that it was chosen by."""
    guard: dict[str, Any] = field(default_factory=dict)
    """First and last figures of the last stage's guard set, and by which share each has worsened.

    The last ones are those of the best checkpoint where `model/` holds it, else of the last evaluation; `step` says
    of when.
    """
    guards: dict[str, Any] = field(default_factory=dict)
    """The same of each stage that has a guard set."""
    warnings: list[str] = field(default_factory=list)
    """What evaluations warned of."""
    mixture: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What each stage was trained on, by dataset and task."""


def report_of(
    stages: list[StageData],
    state: RunState,
    reporter: Reporter,
    *,
    model_path: Path,
    started: float,
    begun_at: Progress | None = None,
) -> RunReport:
    """What a run did that has ended.

    Args:
        stages: Its stages.
        state: What it remembers of its evaluations.
        reporter: Where its figures went.
        model_path: Folder of the model.
        started: When it began, by `time.perf_counter`.
        begun_at: Where it went on; None if it began with the first step.
    """

    def done(stage: StageData) -> int:
        return state.stopped.get(stage.settings.name, stage.max_steps)

    guards: dict[str, Any] = {}
    for stage in stages:
        name, best = stage.settings.name, stage.settings.training.load_best_model_at_end
        if stage.evaluation and (found := state.worsened(name, stage.evaluation.known, of_best=best)):
            guards[name] = found
    before = begun_at.step + sum(map(done, stages[: begun_at.stage])) if begun_at else 0
    return RunReport(
        model_path,
        sum(map(done, stages)),
        time.perf_counter() - started,
        reporter.last,
        sum(stage.max_steps for stage in stages),
        before,
        best={stage: asdict(best) for stage, best in state.best.items()},
        guard=guards.get(stages[-1].settings.name, {}),
        guards=guards,
        warnings=reporter.warnings,
        mixture={
            stage.settings.name: stage.mixture.trained_on(state.drawn.get(stage.settings.name, {})) for stage in stages
        },
    )
