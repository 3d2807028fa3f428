"""Scores predictions: values, counts and confidence intervals by dataset, by task and overall. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.errors import DataError, SpeechLMMError
from speechlmm_core.interfaces.metric import MetricConfig
from speechlmm_train.evaluate.bootstrap import DRAWS, interval
from speechlmm_train.evaluate.metric_choice import MetricChoice
from speechlmm_train.evaluate.prediction import Prediction

NO_CHOICE = MetricChoice()


@dataclass(frozen=True)
class Scored:
    """A metric's statistics of the predictions that it applies to."""

    metric: MetricConfig
    rows: NDArray[np.int64]
    """(N,) numbers of the predictions."""
    table: NDArray[np.float64]
    """(N, S) statistics."""
    invalid: tuple[str, ...] = ()
    """Keys of predictions that the metric has no number for."""

    def total(self, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Statistics (n, S) of those predictions that are chosen."""
        return self.table[chosen[self.rows]]


def statistics(predictions: Sequence[Prediction], choice: MetricChoice = NO_CHOICE) -> dict[str, Scored]:
    """Every metric's statistics; predictions without a reference are left out, failures are empty answers.

    Raises:
        ConfigError: A metric is not installed.
        MissingDependencyError: A library that a metric needs is not installed.
        DataError: A metric cannot be computed on these predictions.
    """
    return {name: _scored(name, rows, predictions, choice) for name, rows in _wanted(predictions, choice).items()}


def report_on(
    predictions: Sequence[Prediction], choice: MetricChoice = NO_CHOICE, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """The report: overall, by task, and by dataset with its tasks.

    Args:
        predictions: What to score.
        choice: Metrics, where not those of the tasks.
        draws: Resamplings for the confidence intervals; 0 for none.
        seed: Decides them.

    Raises:
        ConfigError: A metric is not installed.
        MissingDependencyError: A library that a metric needs is not installed.
        DataError: There is nothing to score, or a metric cannot be computed.
    """
    if not predictions:
        raise DataError("there is no prediction to score")
    scored = statistics(predictions, choice)
    known: dict[tuple[str, bytes], dict[str, Any]] = {}

    def group(chosen: NDArray[np.bool_]) -> dict[str, Any]:
        own = [predictions[number] for number in np.flatnonzero(chosen).tolist()]
        values: dict[str, Any] = {}
        for name, one in scored.items():
            key = (name, chosen[one.rows].tobytes())
            if chosen[one.rows].any():
                if key not in known:  # one dataset of one task is all there is, most of the time
                    known[key] = _entry(one, predictions, chosen, draws, seed)
                values[name] = known[key]
        return {**_counts(own), "metrics": values}

    datasets, tasks = (np.array([getattr(p, name) for p in predictions]) for name in ("dataset", "task"))
    report = group(np.ones(len(predictions), dtype=bool))
    report["tasks"] = {task: group(tasks == task) for task in dict.fromkeys(tasks.tolist())}
    report["datasets"] = {}
    for dataset in dict.fromkeys(datasets.tolist()):
        here = datasets == dataset
        own = group(here)
        names = dict.fromkeys(tasks[here].tolist())
        own["tasks"] = {task: group(here & (tasks == task)) for task in names}
        report["datasets"][dataset] = own
    return {**report, "confidence": 0.95, "draws": draws, "seed": seed}


def score(predictions: Sequence[Prediction], choice: MetricChoice = NO_CHOICE) -> dict[str, dict[str, float]]:
    """The values of each task's metrics with their counts, without intervals.

    Raises:
        ConfigError: A metric is not installed.
        MissingDependencyError: A library that a metric needs is not installed.
        DataError: A metric has no number for some predictions, which are named.
    """
    scored = statistics(predictions, choice)
    raise_if_invalid(scored)
    return _by_task(predictions, scored)


def score_what_can_be(
    predictions: Sequence[Prediction], choice: MetricChoice = NO_CHOICE
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """What `score` gives, without the metrics that fail or have no number; and a line for each of those."""
    found: dict[str, Scored] = {}
    faults: list[str] = []
    for name, rows in _wanted(predictions, choice).items():
        try:
            one = _scored(name, rows, predictions, choice)
            raise_if_invalid({name: one})
        except SpeechLMMError as exc:
            faults.append(str(exc))
        else:
            found[name] = one
    return _by_task(predictions, found), faults


def invalid_lines(scored: dict[str, list[str]]) -> list[str]:
    """One line for each prediction that a metric has no number for, the first ones."""
    return [
        f"metric {name!r} has no number (NaN) for the prediction {key!r}"
        for name, keys in scored.items()
        for key in keys[:10]
    ] + [f"metric {name!r}: and {len(keys) - 10} more" for name, keys in scored.items() if len(keys) > 10]


def raise_if_invalid(scored: dict[str, Scored]) -> None:
    """Refuses values that are none.

    Raises:
        DataError: A metric has no number for some predictions, which are named.
    """
    lines = invalid_lines({name: list(one.invalid) for name, one in scored.items() if one.invalid})
    if lines:
        raise DataError("\n".join(lines))


def invalid_in(report: dict[str, Any]) -> dict[str, list[str]]:
    """Keys of the predictions that metrics have no number for, by metric."""
    return {name: entry["invalid"] for name, entry in report["metrics"].items() if entry.get("invalid")}


def _wanted(predictions: Sequence[Prediction], choice: MetricChoice) -> dict[str, list[int]]:
    """Numbers of the predictions that each metric applies to."""
    wanted: dict[str, list[int]] = {}
    for number, prediction in enumerate(predictions):
        if prediction.references:
            for name in choice.names(prediction):
                wanted.setdefault(name, []).append(number)
    return wanted


def _scored(name: str, rows: Sequence[int], predictions: Sequence[Prediction], choice: MetricChoice) -> Scored:
    metric = choice.metric(name)
    table = metric.statistics([predictions[row].answer for row in rows])
    invalid = ~np.isfinite(table).all(axis=1)
    keys = tuple(predictions[rows[row]].key for row in np.flatnonzero(invalid).tolist())
    return Scored(metric, np.array(rows, dtype=np.int64), table, keys)


def _by_task(predictions: Sequence[Prediction], scored: Mapping[str, Scored]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    tasks = np.array([p.task for p in predictions])
    for task in sorted(set(tasks.tolist())):
        for one in scored.values():
            own = one.total(tasks == task)
            if len(own):
                found.setdefault(task, {}).update(one.metric.score(own.sum(axis=0)))
    return found


def _entry(
    one: Scored, predictions: Sequence[Prediction], chosen: NDArray[np.bool_], draws: int, seed: int
) -> dict[str, Any]:
    table = one.total(chosen)
    own = [predictions[number] for number in one.rows[chosen[one.rows]]]
    entry: dict[str, Any] = {
        "value": None,
        "low": None,
        "high": None,
        "answers": len(own),
        "higher_is_better": one.metric.higher_is_better,
        "scale": one.metric.scale,
        "signature": one.metric.signature_for([p.answer for p in own]),
    }
    bad = set(one.invalid)
    if invalid := [p.key for p in own if p.key in bad]:
        return {**entry, "invalid": invalid}
    (_, entry["value"]), *counts = one.metric.score(table.sum(axis=0)).items()
    if draws:
        entry["low"], entry["high"] = interval(one.metric, table, draws=draws, seed=seed)
    return {**entry, "counts": dict(counts)}


def _counts(own: Sequence[Prediction]) -> dict[str, Any]:
    """How many there were, and how fast they were answered."""
    seconds = sum(p.seconds for p in own)
    media = sum(p.duration or 0.0 for p in own)
    tokens = sum(p.num_tokens for p in own)
    cut = [p.num_tokens for p in own if p.error is None and not p.complete]
    return {
        "examples": len(own),
        "failed": sum(p.error is not None for p in own),
        "cut": len(cut),
        "cut_at": max(cut, default=None),
        "unreadable": sum(p.error is not None and not p.references for p in own),
        "without_reference": sum(p.error is None and not p.references for p in own),
        "media_seconds": round(media, 3),
        "seconds": round(seconds, 3),
        "real_time_factor": _ratio(seconds, media, 6),
        "inverse_real_time_factor": _ratio(media, seconds, 3),
        "tokens_per_second": _ratio(tokens, seconds, 2),
    }


def _ratio(part: float, whole: float, digits: int) -> float | None:
    """A ratio; None where there is none, or none that a number can hold."""
    found = part / whole if whole else math.inf
    return round(found, digits) if math.isfinite(found) else None
