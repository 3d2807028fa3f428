"""What a stage is evaluated on and what decides which checkpoint is the best; checked before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.errors import ConfigError
from speechlmm_core.registry import nearest
from speechlmm_train.evaluate.metric_choice import MetricChoice
from speechlmm_train.stage_config import ResolvedStage
from speechlmm_train.trainer.best import Rule
from speechlmm_train.trainer.open_sets import OpenedSets
from speechlmm_train.trainer.sample import Sample, sample_of
from speechlmm_train.training_config import TrainingConfig

logger = logging.getLogger(__name__)

EVAL, GUARD = "eval", "guard"


@dataclass(frozen=True)
class EvaluationPlan:
    """What a stage is evaluated on, and what follows from it."""

    samples: Mapping[str, Sample]
    """By the first word of their figures: `eval`, `guard`."""
    known: Mapping[str, bool]
    """The figures there will be, and whether more of each is better."""
    rule: Rule | None = None
    """How evaluations are compared; None where they are not."""
    guarded: str = ""
    """Names the guard set and how it is measured, so that its figures are not compared with those of another."""


def plan_evaluation(stage: ResolvedStage, sets: OpenedSets) -> EvaluationPlan | None:
    """Chooses the samples of a stage's evaluations; None where there are none.

    Args:
        stage: The stage.
        sets: Its data.

    Raises:
        ConfigError: A task's metric is not installed, or `metric_for_best_model` names no figure that there will be.
        MissingDependencyError: A library that a metric needs is not installed.
    """
    training = stage.training
    given = {EVAL: sets.evaluation, GUARD: sets.guard}
    if not training.eval_steps:
        if sets.guard:
            logger.warning("stage %r has a guard set that is never looked at: set training.eval_steps", stage.name)
        return None
    samples = {kind: sample_of(parts, training.eval_samples) for kind, parts in given.items() if parts}
    known = figures_of(samples)
    rule = rule_of(training, known, stage.name)
    if rule is not None:
        by = sets.guard if rule.figure.startswith(f"{GUARD}/") else sets.evaluation
        rule = replace(rule, measured=measured(by, training))
    if not samples:
        return None
    return EvaluationPlan(samples, known, rule, measured(sets.guard, training) if sets.guard else "")


def measured(parts: Sequence[OpenedDataset], training: TrainingConfig) -> str:
    """What figures are measured on, and how: only those of which this is the same can be compared."""
    names = ", ".join(f"{part.name} ({len(part.examples)})" for part in parts)
    return f"{names}: {training.eval_samples} of each task, {training.eval_max_new_tokens} tokens"


def rule_of(training: TrainingConfig, known: Mapping[str, bool], stage: str) -> Rule | None:
    """How evaluations are compared; None where they are not.

    Args:
        training: The stage's settings.
        known: The figures that there will be, and whether more of each is better.
        stage: The stage's name.

    Raises:
        ConfigError: There will be no such figure.
    """
    wanted = training.metric_for_best_model
    if wanted is None:
        return None
    figure = next((name for name in (wanted, f"{EVAL}/{wanted}") if name in known), None)
    if figure is None:
        raise ConfigError(
            f"training.metric_for_best_model: stage {stage!r} will have no figure {wanted!r}"
            f"{nearest(wanted, list(known))} (it will have: {', '.join(known) or 'none'})"
        )
    greater = known[figure] if training.greater_is_better is None else training.greater_is_better
    return Rule(figure, greater, training.early_stopping_patience, training.early_stopping_threshold)


def figures_of(samples: Mapping[str, Sample]) -> dict[str, bool]:
    """The figures that evaluations on these samples will have, and whether more of each is better.

    Args:
        samples: By the figures' first word.

    Raises:
        ConfigError: A task's metric is not installed.
        MissingDependencyError: A library that a metric needs is not installed.
    """
    choice = MetricChoice()
    known: dict[str, bool] = {}
    for kind, sample in samples.items():
        languages = sample.languages or [None] * len(sample.tasks)
        asked = dict.fromkeys(zip(sample.tasks, languages, strict=True))
        choice.check((task, sample.metrics[task], language) for task, language in asked)
        for prefix, members in sample.slices.items():
            for task in dict.fromkeys(sample.tasks[i] for i in members):
                for name in sample.metrics[task]:
                    known[f"{kind}/{prefix}{task}_{name}"] = choice.metric(name).higher_is_better
    return known
