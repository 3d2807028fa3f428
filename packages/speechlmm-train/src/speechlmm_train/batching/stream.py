# pyright: strict
"""Endless sequences of micro-batches, made epoch by epoch, and the alternation of several."""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.draw import draw, draws
from speechlmm_train.batching.epoch import Epoch, MicroBatch
from speechlmm_train.batching.mix import Mix
from speechlmm_train.batching.pack import Packer

KEPT_EPOCHS = 3


class Stream:
    """Micro-batches by number; steps run across the ends of epochs.

    Where an epoch starts follows from the lengths of those before it. So that a run that goes on deep into a training
    need not make them all, it can be told of one epoch where it starts (`position`, `go_to`).

    Args:
        packer: Makes micro-batches of an epoch's examples.
        mix: What an epoch holds.
        seed: Seed of every shuffle.
    """

    def __init__(self, packer: Packer, mix: Mix, seed: int) -> None:
        self.packer, self.mix, self.seed = packer, mix, seed
        self._first = 0  # the first epoch that is known
        self._starts = [0]  # number of the first micro-batch of each epoch from that one on
        self._tables: OrderedDict[int, Epoch] = OrderedDict()

    def item(self, number: int) -> MicroBatch:
        """A micro-batch."""
        epoch = self._epoch_of(number)
        table = self._table(epoch)
        span = table.span(number - self.start(epoch))
        return MicroBatch(epoch, table.order[span].tolist(), table.rounds[span].tolist())

    def _epoch_of(self, number: int) -> int:
        if number < self._starts[0]:
            self._forget()
        while number >= self._starts[-1]:
            self.start(self._first + len(self._starts))
        return self._first + bisect_right(self._starts, number) - 1

    def epoch(self, epoch: int) -> Epoch:
        """The table of an epoch; the epochs before it are made if they are not known."""
        if epoch:
            self.start(epoch)
        return self._table(epoch)

    def start(self, epoch: int) -> int:
        """Number of an epoch's first micro-batch."""
        if epoch < self._first:
            self._forget()
        while self._first + len(self._starts) <= epoch:
            last = self._first + len(self._starts) - 1
            self._starts.append(self._starts[-1] + len(self._table(last)))
        return self._starts[epoch - self._first]

    def position(self, number: int) -> dict[str, Any]:
        """What `go_to` needs so that only the epoch that holds a micro-batch has to be made to get there."""
        epoch = self._epoch_of(number)
        return {"epoch": epoch, "start": self.start(epoch)}

    def go_to(self, position: dict[str, Any]) -> None:
        """Takes over where an epoch starts, from `position` of a stream of the same examples, mix, seed and budget."""
        self._first, self._starts = int(position["epoch"]), [int(position["start"])]
        self._tables.clear()

    def _forget(self) -> None:
        self._first, self._starts = 0, [0]

    def examples(self, first: int, last: int) -> Iterator[NDArray[np.int64]]:
        """The examples of the micro-batches from ``first`` to before ``last``, in pieces."""
        return (piece.order for piece in self.pieces(first, last))

    def pieces(self, first: int, last: int) -> Iterator[Epoch]:
        """The micro-batches from ``first`` to before ``last``, as a table for each epoch that they are of."""
        while first < last:
            epoch = self._epoch_of(first)
            start = self.start(epoch)
            table = self._table(epoch)
            yield table.part(first - start, min(last - start, len(table)))
            first = start + len(table)

    def mean_length(self) -> float:
        """Micro-batches of the first epoch's examples."""
        return float(len(self.epoch(0)))

    def _table(self, epoch: int) -> Epoch:
        if epoch not in self._tables:
            self._tables[epoch] = self._make(epoch, self.start(epoch) if epoch else 0)
            while len(self._tables) > KEPT_EPOCHS:
                self._tables.popitem(last=False)
        self._tables.move_to_end(epoch)
        return self._tables[epoch]

    def _make(self, epoch: int, start: int) -> Epoch:
        drawn = self.mix.drawn(self.seed, epoch)
        # No more than one pass over the data at a time: sorted by length, repeats would lie side by side.
        window = max(1, -(-len(drawn.examples) // drawn.passes))
        window = window if self.mix.mixing == "length" else min(window, self.packer.window)
        batches: list[NDArray[np.int64]] = []
        for places in self._sections(drawn.examples, drawn.order):
            own = self.packer.windows(drawn.examples, places, seed=self.seed, epoch=epoch, window=window)
            at = start + len(batches)
            batches += self.packer.arrange(drawn.examples, own, seed=self.seed, epoch=epoch, start=at)
        return Epoch.of(batches, drawn.examples, drawn.rounds)

    def _sections(self, examples: NDArray[np.int64], order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The epoch's places, in parts that come one after the other."""
        if self.mix.mixing != "sequential":
            return [order]
        names = list(dict.fromkeys(group.dataset for group in self.mix.groups))
        dataset = np.array([names.index(group.dataset) for group in self.mix.groups])[self.mix.members[examples[order]]]
        return [order[dataset == number] for number in range(len(names)) if (dataset == number).any()]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": OrderedDict()}


class Alternation(Stream):
    """Whole steps of one task at a time: each task has its own stream, and steps are taken from them in turn.

    An epoch holds as many steps of a task as its stream completes with the examples of that epoch. They are spread
    evenly, each task's k-th of n steps falling into the k-th n-th of the epoch.
    """

    def __init__(self, packer: Packer, mix: Mix, seed: int) -> None:
        super().__init__(packer, mix, seed)
        self.streams = [Stream(packer, mix.only(task), _own_seed(seed, task)) for task in mix.tasks]

    def mean_length(self) -> float:
        """Micro-batches of the first epoch's examples, those that complete no step among them."""
        return sum(stream.mean_length() for stream in self.streams)

    def position(self, number: int) -> dict[str, Any]:
        """What `go_to` needs: also where each task's stream stands when the epoch begins."""
        found, group = super().position(number), self.packer.micro_batches_per_step
        begun = [stream.start(found["epoch"]) // group * group for stream in self.streams]
        tasks = [stream.position(first) for stream, first in zip(self.streams, begun, strict=True)]
        return {**found, "tasks": tasks}

    def go_to(self, position: dict[str, Any]) -> None:
        """Takes over where an epoch starts."""
        super().go_to(position)
        for stream, one in zip(self.streams, position["tasks"], strict=True):
            stream.go_to(one)

    def _make(self, epoch: int, start: int) -> Epoch:
        group = self.packer.micro_batches_per_step
        keys: list[NDArray[np.float64]] = []
        tables: list[Epoch] = []
        for number, stream in enumerate(self.streams):
            first, last = (stream.start(e) // group for e in (epoch, epoch + 1))
            chance = draws(self.seed, epoch, last - first, f"turns {number}") / 2.0**64
            keys.append((np.arange(last - first) + chance) / max(last - first, 1))
            tables += stream.pieces(first * group, last * group)
        every = Epoch.joined(tables)
        steps = np.argsort(np.concatenate(keys), kind="stable")
        return every.rearranged((steps[:, None] * group + np.arange(group)).reshape(-1))


def _own_seed(seed: int, task: str) -> int:
    return draw(seed, 0, zlib.crc32(task.encode()), "task")
