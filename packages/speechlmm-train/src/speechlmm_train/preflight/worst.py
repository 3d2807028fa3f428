"""The micro-batches of a plan that need the most memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speechlmm_train.batching.epoch import Epoch, MicroBatch
from speechlmm_train.batching.plan import BatchPlan


def worst_batches(plan: BatchPlan) -> list[MicroBatch]:
    """The fullest micro-batches of the plan's first epoch, by positions and by frames, and that of the longest example.

    Several may be one and the same, which then comes once.
    """
    number = 0
    while not len(table := plan.epoch(number)):  # no task completes a step of its own in it
        number += 1
    positions, frames = _sizes(plan, table)
    longest = np.maximum.reduceat(plan.positions[table.order], _starts(table))
    chosen = dict.fromkeys(int(np.argmax(sizes)) for sizes in (positions, frames, longest))
    return [MicroBatch(number, table.batch(place), table.rounds[table.span(place)].tolist()) for place in chosen]


def padding_share(plan: BatchPlan) -> tuple[float, float]:
    """Which share of the first epoch's positions, and of its encoder frames, is padding."""
    table = plan.epoch(0)
    if not len(table):
        return 0.0, 0.0
    shares: list[float] = []
    for sizes, lengths in zip(_sizes(plan, table), (plan.positions, plan.frames), strict=True):
        held, real = int(sizes.sum()), int(lengths[table.order].sum())
        shares.append(1 - real / held if held else 0.0)
    return shares[0], shares[1]


def _sizes(plan: BatchPlan, table: Epoch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions and encoder frames of each micro-batch, padding included."""
    starts = _starts(table)
    counts = np.diff(np.append(starts, table.ends[-1]))
    positions, frames = plan.positions[table.order], plan.frames[table.order]
    padded = counts * np.maximum.reduceat(positions, starts)
    held = np.add.reduceat(positions, starts) if plan.budget.packed else padded
    return held, np.add.reduceat((frames > 0).astype(np.int64), starts) * np.maximum.reduceat(frames, starts)


def _starts(table: Epoch) -> NDArray[np.int64]:
    return np.concatenate([[0], table.ends[:-1]]).astype(np.int64)
