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
    positions, frames = sizes(plan, table)
    longest = np.maximum.reduceat(plan.positions[table.order], starts(table))
    chosen = dict.fromkeys(int(np.argmax(held)) for held in (positions, frames, longest))
    return [MicroBatch(number, table.batch(place), table.rounds[table.span(place)].tolist()) for place in chosen]


def sizes(plan: BatchPlan, table: Epoch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions and encoder frames of each micro-batch, padding included."""
    begins = starts(table)
    counts = np.diff(np.append(begins, table.ends[-1]))
    positions, frames = plan.positions[table.order], plan.frames[table.order]
    padded = counts * np.maximum.reduceat(positions, begins)
    held = np.add.reduceat(positions, begins) if plan.budget.packed else padded
    return held, np.add.reduceat((frames > 0).astype(np.int64), begins) * np.maximum.reduceat(frames, begins)


def starts(table: Epoch) -> NDArray[np.int64]:
    """Where each micro-batch begins in the epoch's order."""
    return np.concatenate([[0], table.ends[:-1]]).astype(np.int64)
