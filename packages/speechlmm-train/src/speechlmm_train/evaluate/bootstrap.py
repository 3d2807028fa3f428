"""Confidence intervals and paired significance from tables of statistics. Imports no torch.

Papers: P. Koehn, "Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004 (paired bootstrap);
S. Riezler, J. T. Maxwell, "On Some Pitfalls in Automatic Evaluation and Significance Testing for MT", ACL workshop
2005 (approximate randomisation).

Shapes: N answers, S statistics, R draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.interfaces.metric import MetricConfig

DRAWS = 1000
LEVEL = 0.95
_CELLS = 1 << 22
"""Numbers of a block of draws; bounds the memory."""

Table = NDArray[np.float64]


def value(metric: MetricConfig, total: Table) -> float:
    """A metric's own value from summed statistics."""
    return next(iter(metric.score(total).values()))


def values(metric: MetricConfig, totals: Table) -> Table:
    """A metric's values (R,) from totals (R, S)."""
    return np.array([value(metric, total) for total in totals])


def resampled_totals(table: Table, *, draws: int = DRAWS, seed: int = 0) -> Table:
    """Sums (R, S) of the statistics of N answers drawn from N, with repetition.

    The same seed draws the same answers for every table of N rows, which pairs systems and metrics.
    """
    totals = [counts @ table for counts in _resampling_matrix(len(table), draws, seed)]
    return np.concatenate(totals)


def interval(metric: MetricConfig, table: Table, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """The bootstrap's interval of a metric over answers: the middle `LEVEL` of its values."""
    return _middle(values(metric, resampled_totals(table, draws=draws, seed=seed)))


@dataclass(frozen=True)
class Paired:
    """A metric of two systems on the same answers."""

    a: float
    b: float
    low: float
    """Lower end of the interval of the difference."""
    high: float
    """Upper end of the interval of the difference."""
    p_bootstrap: float
    """How likely such a difference would be, were there none: paired bootstrap."""
    p_randomisation: float
    """The same by approximate randomisation."""

    @property
    def difference(self) -> float:
        """B less A."""
        return self.b - self.a


def paired(metric: MetricConfig, a: Table, b: Table, *, draws: int = DRAWS, seed: int = 0) -> Paired:
    """Compares two systems by a metric.

    Args:
        metric: The metric.
        a: Statistics (N, S) of one system's answers.
        b: Those of the other's, in the same order.
        draws: Number of resamplings, and of random assignments.
        seed: Decides them.
    """
    value_a, value_b = value(metric, a.sum(axis=0)), value(metric, b.sum(axis=0))
    difference = value_b - value_a
    found = values(metric, resampled_totals(b, draws=draws, seed=seed)) - values(
        metric, resampled_totals(a, draws=draws, seed=seed)
    )
    # The distribution around the observed difference, moved to zero, is what no difference would look like.
    p_bootstrap = _p_value(np.abs(found - difference), abs(difference))
    swapped = np.concatenate([mask @ (b - a) for mask in _assignments(len(a), draws, seed)])  # (R, S)
    shuffled = values(metric, b.sum(axis=0) - swapped) - values(metric, a.sum(axis=0) + swapped)
    p_randomisation = _p_value(np.abs(shuffled), abs(difference))
    return Paired(value_a, value_b, *_middle(found), p_bootstrap, p_randomisation)


def _resampling_matrix(count: int, draws: int, seed: int) -> Iterator[Table]:
    """How often each of N answers is drawn (R, N), in blocks."""
    generator = np.random.default_rng(seed)
    for rows in _blocks(count, draws):
        drawn = generator.integers(0, count, size=(rows, count))
        flat = (drawn + np.arange(rows)[:, None] * count).ravel()
        yield np.bincount(flat, minlength=rows * count).reshape(rows, count).astype(np.float64)


def _assignments(count: int, draws: int, seed: int) -> Iterator[Table]:
    """Which answers change sides (R, N), in blocks."""
    generator = np.random.default_rng([seed, 1])
    for rows in _blocks(count, draws):
        yield generator.integers(0, 2, size=(rows, count)).astype(np.float64)


def _blocks(count: int, draws: int) -> Iterator[int]:
    most = max(1, _CELLS // max(count, 1))
    for start in range(0, draws, most):
        yield min(most, draws - start)


def _middle(found: Table) -> tuple[float, float]:
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _p_value(found: Table, observed: float) -> float:
    # A sum of fractions in another order differs in its last bits, which must not count as less.
    return float((np.count_nonzero(found >= observed - 1e-12) + 1) / (len(found) + 1))
