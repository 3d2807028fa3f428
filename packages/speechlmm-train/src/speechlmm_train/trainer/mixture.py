"""The mixture of datasets and tasks: the groups that the plan draws from, what is planned, and what was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_train.batching.mix import Group
from speechlmm_train.batching.plan import BatchPlan

HEAD: tuple[str, ...] = ("DATASET", "TASK", "EXAMPLES", "HOURS", "ASKED", "SHARE", "OF POSITIONS", "TIMES")
Row = dict[str, str | float]


def groups_of(parts: Sequence[OpenedDataset]) -> tuple[list[Group], NDArray[np.int64]]:
    """Datasets with their tasks in the order in which they come, and the group of each example."""
    known: dict[tuple[str, str], int] = {}
    groups: list[Group] = []
    members: list[NDArray[np.int64]] = []

    def number(part: OpenedDataset, task: str) -> int:
        key = (part.dataset, task)
        if key not in known:
            known[key] = len(groups)
            groups.append(Group(part.dataset, task, part.weight))
        return known[key]

    for part in parts:
        count = len(part.examples)
        if part.task is not None:
            members.append(np.full(count, number(part, part.task), dtype=np.int64))
        else:
            own = (number(part, part.examples.example(index).task) for index in range(count))
            members.append(np.fromiter(own, np.int64, count))
    return groups, np.concatenate(members) if members else np.zeros(0, np.int64)


@dataclass(frozen=True)
class Mixture:
    """Counts what a plan draws from its groups.

    Args:
        plan: The plan.
        seconds: (N,) seconds of media of the plan's examples.
    """

    plan: BatchPlan
    seconds: NDArray[np.float64]

    @property
    def names(self) -> list[str]:
        """The groups, as reports call them."""
        return [f"{group.dataset} {group.task}" for group in self.plan.mix.groups]

    def count(self, first_step: int, last_step: int) -> NDArray[np.float64]:
        """(G, 3) examples, positions and seconds of each group in the steps from ``first_step`` to ``last_step``."""
        found = np.zeros((len(self.plan.mix.groups), 3))
        for examples in self.plan.examples(first_step, last_step):
            found += self._of(examples)
        return found

    def _of(self, examples: NDArray[np.int64]) -> NDArray[np.float64]:
        groups = self.plan.mix.members[examples]
        weights = (np.ones(len(examples)), self.plan.positions[examples], self.seconds[examples])
        columns = [np.bincount(groups, one, len(self.plan.mix.groups)).astype(np.float64) for one in weights]
        return np.stack(columns, axis=1)

    def figures(self, counts: NDArray[np.float64]) -> dict[str, float]:
        """Each task's share of the examples and of the positions."""
        tasks = [group.task for group in self.plan.mix.groups]
        shares = counts / np.maximum(counts.sum(axis=0), 1)
        figures: dict[str, float] = {}
        for task in dict.fromkeys(tasks):
            own = shares[[name == task for name in tasks]].sum(axis=0)
            figures[f"data/share_{task}"] = float(own[0])
            figures[f"data/position_share_{task}"] = float(own[1])
        return figures

    def trained_on(self, drawn: Mapping[str, Sequence[float]]) -> list[Row]:
        """A row for each group with what was drawn of it, from the groups' counts."""
        counts = [drawn.get(name, (0.0, 0.0, 0.0)) for name in self.names]
        return self.rows(np.array(counts, dtype=np.float64).reshape(-1, 3))

    def rows(self, counts: NDArray[np.float64] | None = None) -> list[Row]:
        """A row for each group: what it has, the share that was asked for, and that of the counts.

        Args:
            counts: As `count` gives them; by default those of the plan's first epoch.
        """
        plan, mix = self.plan, self.plan.mix
        if counts is None:
            counts = self._of(plan.epoch(0).order) if len(plan.epoch(0)) else np.zeros((len(mix.groups), 3))
        there = np.bincount(mix.members, minlength=len(mix.groups))
        hours = np.bincount(mix.members, self.seconds, len(mix.groups)) / 3600
        shares = counts / np.maximum(counts.sum(axis=0), 1)
        return [
            {
                "dataset": group.dataset,
                "task": group.task,
                "examples": int(there[number]),
                "hours": float(hours[number]),
                "asked": float(mix.asked[number]),
                "share": float(shares[number, 0]),
                "share_of_positions": float(shares[number, 1]),
                "times": float(counts[number, 0] / max(there[number], 1)),
            }
            for number, group in enumerate(mix.groups)
        ]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of a table of rows, with a sum."""
    cells = [HEAD]
    for row in rows:
        shares = (f"{100 * float(row[name]):.1f} %" for name in ("asked", "share", "share_of_positions"))
        numbers = (f"{row['examples']:,}", f"{row['hours']:.2f}", *shares, f"{row['times']:.2f}")
        cells.append((str(row["dataset"]), str(row["task"]), *numbers))
    total = (sum(int(row["examples"]) for row in rows), sum(float(row["hours"]) for row in rows))
    cells.append(("total", "", f"{total[0]:,}", f"{total[1]:.2f}", "", "", "", ""))
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    for line in cells:
        pairs = enumerate(zip(line, widths, strict=True))
        yield "  ".join(cell.ljust(w) if column < 2 else cell.rjust(w) for column, (cell, w) in pairs).rstrip()
