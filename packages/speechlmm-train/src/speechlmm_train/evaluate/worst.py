"""Which examples went worst. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from speechlmm_core.interfaces.metric import MetricConfig, Scale
from speechlmm_train.evaluate.metric_choice import MetricChoice
from speechlmm_train.evaluate.prediction import Prediction
from speechlmm_train.evaluate.score import Scored, statistics


class Ranked(NamedTuple):
    """A prediction with its own score."""

    prediction: Prediction
    metric: str
    value: float | None
    """None for one that failed or that the metric has no number for."""
    scale: Scale = "number"


def example_values(scored: Mapping[str, Scored], predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    """Each prediction's own value of each metric: by metric, then by key."""
    found: dict[str, dict[str, float]] = {}
    for name, one in scored.items():
        finite = [bool(np.isfinite(row).all()) for row in one.table]
        found[name] = {
            predictions[number].key: next(iter(one.metric.score(row).values()))
            for number, row, is_number in zip(one.rows.tolist(), one.table, finite, strict=True)
            if is_number
        }
    return found


def worst_examples(
    predictions: Sequence[Prediction], choice: MetricChoice, count: int, scored: Mapping[str, Scored] | None = None
) -> dict[str, list[Ranked]]:
    """The worst predictions of each dataset by the headline metric of their task, failures first; no perfect ones."""
    scored = statistics(predictions, choice) if scored is None else scored
    values = example_values(scored, predictions)
    by_dataset: dict[str, list[tuple[float, Ranked]]] = {}
    for prediction in predictions:
        if not prediction.references and prediction.error is None:
            continue
        name = next((one for one in choice.names(prediction) if one in values), "")
        value = values[name].get(prediction.key) if name else None
        scale: Scale = scored[name].metric.scale if name else "number"
        if value is not None and prediction.error is None and _is_perfect(prediction, value, scored[name].metric):
            continue
        if prediction.error is not None or value is None:
            rank = -np.inf
        else:
            rank = value if scored[name].metric.higher_is_better else -value
        by_dataset.setdefault(prediction.dataset, []).append((rank, Ranked(prediction, name, value, scale)))
    return {
        dataset: [one for _, one in sorted(ranked, key=lambda pair: pair[0])[:count]]
        for dataset, ranked in by_dataset.items()
    }


def _is_perfect(prediction: Prediction, value: float, metric: MetricConfig) -> bool:
    # BLEU of a short sentence is 0 by itself, whatever is answered.
    if (prediction.text or "").strip() in (reference.strip() for reference in prediction.references):
        return True
    if metric.scale == "number":
        return False
    return value == ((1.0 if metric.scale == "fraction" else 100.0) if metric.higher_is_better else 0.0)
