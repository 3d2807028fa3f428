"""Leaves out, by `data.oversized: skip`, the examples that are longer than a budget, and says which."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.index.sizes import Lengths
from speechlmm_core.errors import DataError
from speechlmm_train.stage_config import ResolvedStage

logger = logging.getLogger(__name__)

LISTED = 20
"""Examples that the log names, the longest first."""


def leave_out(
    stage: ResolvedStage, lengths: Lengths, indices: NDArray[np.int64], place: Callable[[int], str]
) -> tuple[NDArray[np.int64], list[int]]:
    """The examples that fit into the stage's budgets, and those that do not, where these are to be left out.

    Args:
        stage: The stage.
        lengths: What the examples take.
        indices: Those that take part.
        place: Names an example.

    Raises:
        DataError: None fits.
    """
    if stage.data.oversized != "skip":
        return indices, []
    limits = {"token_budget": (lengths.positions, "positions"), "frame_budget": (lengths.frames, "encoder frames")}
    fits = np.ones(len(indices), dtype=np.bool_)
    for name, (sizes, unit) in limits.items():
        budget = getattr(stage.training, name)
        if not isinstance(budget, int):
            continue
        here = sizes[indices]
        if here.min() > budget:
            raise DataError(
                f"stage {stage.name!r}: training.{name}={budget} leaves no example; the shortest, "
                f"{place(int(indices[here.argmin()]))}, has {here.min()} {unit}. Raise it"
            )
        fits &= here <= budget
    skipped = [int(index) for index in indices[~fits]]
    if skipped:
        ordered = sorted(skipped, key=lambda index: -int(lengths.positions[index]))
        named = [f"{place(index)} ({lengths.positions[index]} positions)" for index in ordered[:LISTED]]
        rest = f" and {len(skipped) - LISTED} more" if len(skipped) > LISTED else ""
        logger.warning(
            "stage %r leaves out %d of %d examples (%.2f h) that are longer than a budget: %s%s",
            stage.name,
            len(skipped),
            len(indices),
            lengths.seconds[skipped].sum() / 3600,
            ", ".join(named),
            rest,
        )
    if not fits.any():
        raise DataError(f"stage {stage.name!r}: every example is longer than one of the two budgets; raise them")
    return indices[fits], skipped
