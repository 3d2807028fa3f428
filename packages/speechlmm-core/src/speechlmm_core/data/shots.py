"""Which examples of a dataset are shown before the one that is asked about. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd
from typing import TYPE_CHECKING

from speechlmm_core.data.chats import task_for
from speechlmm_core.data.draw import derive, draw
from speechlmm_core.errors import DataError

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


def shots_for(examples: Sequence[Example], index: int, number: int) -> list[Example]:
    """The examples that the task of an example shows first: others of the dataset that have all that it needs.

    Args:
        examples: The dataset.
        index: Number of the example that is asked about.
        number: The draw; 0 takes the first that there are, or those that the task's own seed draws.

    Raises:
        DataError: The dataset has too few that can be shown.
    """
    task = task_for(examples[index])
    if not task.num_shots:
        return []
    if not number:
        seed = task.shots_seed
        number = 0 if seed is None else draw(seed, 0, index, "shots") or 1
    found: list[Example] = []
    for other in _others(len(examples), index, derive(number, "shots")):
        shot = examples[other]
        if task_for(shot) == task and task.check(shot) is None:
            found.append(shot)
        if len(found) == task.num_shots:
            return found
    raise DataError(
        f"task {task.type!r} is to show {task.num_shots} further examples (`num_few_shots`), but the dataset has only "
        f"{len(found)} that can be shown beside example {examples[index].id!r}"
    )


def _others(count: int, index: int, number: int) -> Iterator[int]:
    """All other indices in a drawn order, in their own for 0; made one by one, for a dataset may have millions."""
    total = count - 1
    start = derive(number, "first") % total if total else 0
    step = derive(number, "step") % total if number and total else 1
    while total and gcd(step, total) != 1:
        step += 1
    for k in range(total):
        other = (start + k * step) % total
        yield other + (other >= index)
