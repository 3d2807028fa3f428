# pyright: strict
"""Micro-batches, and the table of an epoch's micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MicroBatch:
    """Examples that are processed together."""

    epoch: int
    """The epoch of the plan that it belongs to."""
    indices: list[int]
    """Numbers of the examples."""
    rounds: list[int]
    """How many times each of them has come before; prompt wordings are drawn from it."""


@dataclass(frozen=True)
class Epoch:
    """The micro-batches of an epoch."""

    order: NDArray[np.int64]
    """Examples, micro-batch after micro-batch."""
    ends: NDArray[np.int64]
    """Where each micro-batch ends in `order`."""
    rounds: NDArray[np.int64]
    """How many times each example of `order` has come before."""

    @classmethod
    def of(cls, batches: Sequence[NDArray[np.int64]], examples: NDArray[np.int64], rounds: NDArray[np.int64]) -> Epoch:
        """The table of micro-batches that hold places in ``examples``."""
        order = np.concatenate(batches) if batches else np.zeros(0, np.int64)
        ends = np.cumsum([len(batch) for batch in batches], dtype=np.int64)
        return cls(examples[order], ends, rounds[order])

    @classmethod
    def joined(cls, tables: Sequence[Epoch]) -> Epoch:
        """The micro-batches of several tables, one table after the other."""
        nothing = [np.zeros(0, np.int64)]
        order, sizes, rounds = (
            np.concatenate(nothing + [getattr(table, name) for table in tables])
            for name in ("order", "sizes", "rounds")
        )
        return cls(order, np.cumsum(sizes), rounds)

    def part(self, first: int, last: int) -> Epoch:
        """The micro-batches from ``first`` to before ``last``."""
        begin, end = (int(self.ends[number - 1]) if number else 0 for number in (first, last))
        return Epoch(self.order[begin:end], self.ends[first:last] - begin, self.rounds[begin:end])

    def rearranged(self, numbers: NDArray[np.int64]) -> Epoch:
        """The micro-batches of these numbers, in this order."""
        sizes = self.sizes[numbers]
        ends = np.cumsum(sizes)
        # Where each example stands, less where it comes to stand.
        moved = (self.ends[numbers] - ends).repeat(sizes)
        places = np.arange(len(moved)) + moved
        return Epoch(self.order[places], ends, self.rounds[places])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Examples of each micro-batch."""
        return np.diff(self.ends, prepend=0)

    def __len__(self) -> int:
        return len(self.ends)

    def span(self, number: int) -> slice:
        """Where a micro-batch lies in `order`."""
        return slice(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))

    def batch(self, number: int) -> list[int]:
        """The examples of a micro-batch."""
        return self.order[self.span(number)].tolist()
