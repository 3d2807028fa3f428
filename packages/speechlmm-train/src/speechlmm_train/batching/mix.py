# pyright: strict
"""How much of each dataset and task an epoch holds: which examples are drawn, and in which order they are packed.

Weights are shares of examples, or of positions with `length`. Without any, an epoch holds each example once. Each group
(a dataset's examples of a task) is walked through in an order of its own, from where the epoch before left off. So an
example comes no more than once oftener than another of its group, within an epoch as over all of them, and what an
epoch holds is known without the epochs before it.

Shapes: N examples, G groups, M examples of an epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechlmm_core.data.draw import draws, permutation
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.registry import nearest
from speechlmm_train.data_config import Mixing

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """The examples of a dataset that are of one task."""

    dataset: str
    task: str
    weight: float | None = None
    """The dataset's weight; None for as many examples as it has."""


@dataclass(frozen=True)
class Drawn:
    """What an epoch holds."""

    examples: Ints
    """(M,) examples, in ascending order."""
    rounds: Ints
    """(M,) how many times each has come before."""
    order: Ints
    """(M,) places in `examples`, shuffled; repeats of an example lie evenly apart."""
    passes: int = 1
    """How often each example comes at least."""


@dataclass(frozen=True)
class Mix:
    """The groups of a plan's examples, and what each contributes to an epoch."""

    groups: tuple[Group, ...]
    members: Ints
    """(N,) each example's group."""
    mixing: Mixing
    asked: Floats
    """(G,) shares that the weights ask for, of examples (of positions with `length`); their sum is 1."""
    quotas: Floats
    """(G,) examples of each group in an epoch, on average."""
    once: bool
    """Whether an epoch holds each example of its groups exactly once."""

    @classmethod
    def of(
        cls,
        groups: Sequence[Group],
        members: ArrayLike,
        positions: ArrayLike,
        *,
        mixing: Mixing = "random",
        task_weights: Mapping[str, float] | None = None,
        dataset_weights: Mapping[str, float] | None = None,
        repeat: bool = True,
    ) -> Mix:
        """Works out what each group contributes.

        Args:
            groups: Datasets and their tasks, in the order in which they are given.
            members: (N,) the group of each example.
            positions: (N,) positions of each example.
            mixing: What weights count, and what steps are made of.
            task_weights: Shares of the tasks, which need not sum to 1; 0 leaves a task out.
            dataset_weights: Shares of the datasets, in place of their groups' own.
            repeat: Whether groups that have too few examples for their share come more often than once an epoch;
                otherwise the others come less often.

        Raises:
            ConfigError: A weight names nothing that is there, or is missing beside others.
            DataError: Nothing is left of what has a weight.
        """
        member = np.ascontiguousarray(members, dtype=np.int64)
        counts = np.bincount(member, minlength=len(groups)).astype(np.float64)
        sizes: Floats = np.asarray(positions, dtype=np.float64)
        tokens: Floats = np.bincount(member, weights=sizes, minlength=len(groups)).astype(np.float64)
        amounts: Floats = tokens if mixing == "length" else counts
        weights = _Weights(groups, amounts, dict(task_weights or {}), dict(dataset_weights or {}))
        asked, once = weights.shares()
        quotas = np.where(asked > 0, counts, 0.0)
        if not once:
            taken = asked > 0
            most = amounts[taken].sum() if repeat else (amounts[taken] / asked[taken]).min()
            quotas[taken] = asked[taken] * most * (counts[taken] / amounts[taken])
            if not repeat:
                quotas = np.minimum(quotas, counts)
        return cls(tuple(groups), member, mixing, asked, quotas, once)

    @classmethod
    def plain(cls, count: int) -> Mix:
        """Each of so many examples once an epoch."""
        return cls((Group("", ""),), np.zeros(count, np.int64), "random", np.ones(1), np.full(1, float(count)), True)

    @property
    def tasks(self) -> list[str]:
        """The tasks that take part, in their groups' order."""
        taken = zip(self.groups, self.quotas, strict=True)
        return list(dict.fromkeys(group.task for group, quota in taken if quota > 0))

    @property
    def task_numbers(self) -> Ints:
        """(N,) each example's place in `tasks`; -1 where its task takes no part."""
        numbers = {task: number for number, task in enumerate(self.tasks)}
        return np.array([numbers.get(group.task, -1) for group in self.groups], dtype=np.int64)[self.members]

    def only(self, task: str) -> Mix:
        """The part of the mix that is of a task."""
        mine = np.array([group.task == task for group in self.groups])
        return replace(self, quotas=np.where(mine, self.quotas, 0.0))

    def drawn(self, seed: int, epoch: int) -> Drawn:
        """What an epoch holds."""
        if self.once:
            examples = np.flatnonzero(self.quotas[self.members] > 0)
            order = permutation(seed, epoch, len(examples), "examples")
            return Drawn(examples, np.full(len(examples), epoch), order)
        parts = [self._walk(seed, epoch, group) for group in range(len(self.groups)) if self.quotas[group] > 0]
        examples, rounds, before, times = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        ascending = np.argsort(examples, kind="stable")
        examples, rounds, before, times = (array[ascending] for array in (examples, rounds, before, times))
        if (times > 1).any():
            # An example that comes n times comes once in each n-th of the epoch, at the same place in each.
            chance = (draws(seed, epoch, len(examples), "examples") / 2.0**64)[np.arange(len(examples)) - before]
            order = np.argsort((before + chance) / times, kind="stable")
            return Drawn(examples, rounds, order, int(times.min()))
        return Drawn(examples, rounds, permutation(seed, epoch, len(examples), "examples"))

    def _walk(self, seed: int, epoch: int, group: int) -> tuple[Ints, Ints, Ints, Ints]:
        """A group's examples of an epoch, their rounds, and the how-many-eth of how many each is in the epoch."""
        own = np.flatnonzero(self.members == group)
        name = self.groups[group]
        own = own[permutation(seed, 0, len(own), f"group {name.dataset} {name.task}")]
        first, last = (int(np.floor(number * self.quotas[group] + 0.5)) for number in (epoch, epoch + 1))
        at = np.arange(first, last)
        before = (at - first) // len(own)
        times = -(-(last - first - (at - first) % len(own)) // len(own))
        return own[at % len(own)], at // len(own), before, times


@dataclass(frozen=True)
class _Weights:
    """Works out shares from weights."""

    groups: Sequence[Group]
    amounts: Floats
    tasks: dict[str, float]
    given: dict[str, float]

    def shares(self) -> tuple[Floats, bool]:
        """The groups' shares, and whether they are those of their examples as they are."""
        datasets = {group.dataset: group.weight for group in self.groups}
        self._known("data.task_weights", "task", self.tasks, [group.task for group in self.groups])
        self._known("data.dataset_weights", "dataset", self.given, list(datasets))
        weights = {**datasets, **self.given}
        left = [
            number
            for number, group in enumerate(self.groups)
            if weights[group.dataset] != 0 and self.tasks.get(group.task) != 0
        ]
        if not left:
            raise ConfigError("data: the weight of every dataset or of its task is 0; nothing would be trained on")
        self._there("dataset", {self.groups[i].dataset: weights[self.groups[i].dataset] for i in left})
        self._there("task", {self.groups[i].task: self.tasks.get(self.groups[i].task) for i in left})
        left = [number for number in left if self.amounts[number] > 0]
        asked = np.zeros(len(self.groups))
        if not any(self.tasks.values()):
            asked[left] = self._within(left, weights)
        else:
            names = dict.fromkeys(self.groups[i].task for i in left)
            pools = {name: [i for i in left if self.groups[i].task == name] for name in names}
            self._complete("data.task_weights", "task", {name: self.tasks.get(name) for name in pools})
            for name, pool in pools.items():
                asked[pool] = self.tasks[name] * self._within(pool, weights)
        once = not any(self.tasks.values()) and not any(weights[self.groups[i].dataset] for i in left)
        return asked / asked.sum(), once

    def _within(self, pool: list[int], weights: Mapping[str, float | None]) -> Floats:
        """Shares among some groups: by their datasets' weights, or as many examples as they have."""
        amounts = self.amounts[pool]
        names = [self.groups[i].dataset for i in pool]
        given = {name: weights[name] for name in names}
        if not any(given.values()):
            return amounts / amounts.sum()
        self._complete("weight", "dataset", given)
        sums = {name: sum(a for a, own in zip(amounts, names, strict=True) if own == name) for name in given}
        shares = np.array([(given[name] or 0) * a / sums[name] for a, name in zip(amounts, names, strict=True)])
        return shares / shares.sum()

    def _known(self, field: str, what: str, given: Mapping[str, float], known: list[str]) -> None:
        names = list(dict.fromkeys(known))
        for name in given:
            if name not in names:
                raise ConfigError(
                    f"{field}: there is no {what} {name!r}{nearest(name, names)} (has: {', '.join(names)})"
                )

    def _complete(self, field: str, what: str, weights: Mapping[str, float | None]) -> None:
        without = [name for name, weight in weights.items() if weight is None]
        if without:
            others = ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight is not None)
            raise ConfigError(
                f"{field}: {what} {without[0]!r} has no weight beside {others}; give every {what} one (0 leaves it "
                "out), or none at all"
            )

    def _there(self, what: str, weights: Mapping[str, float | None]) -> None:
        for name, weight in weights.items():
            own = [a for group, a in zip(self.groups, self.amounts, strict=True) if getattr(group, what) == name]
            if weight and not sum(own):
                raise DataError(f"{what} {name!r} has weight {weight:g}, but no example of it is left")
