# pyright: strict
"""Packs an epoch's examples into micro-batches: matched in length, and steps whose micro-batches cost the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.draw import draws, permutation
from speechlmm_train.batching.fill import Budget, fill

JITTER = 0.05


@dataclass(frozen=True)
class Packer:
    """What examples take, and what a micro-batch may hold."""

    positions: NDArray[np.int64]
    """(N,) positions of the language model."""
    frames: NDArray[np.int64]
    """(N,) encoder output frames."""
    budget: Budget
    window: int
    """Examples among which lengths are matched."""
    micro_batches_per_step: int

    @cached_property
    def scales(self) -> tuple[float, float]:
        """What shares of positions and of frames are relative to: the budgets, or sixteen mean examples."""
        pairs = ((self.positions, self.budget.tokens), (self.frames, self.budget.frames))
        tokens, frames = (
            budget if math.isfinite(budget) else max(1.0, 16 * float(lengths.mean())) for lengths, budget in pairs
        )
        return tokens, frames

    @cached_property
    def sizes(self) -> NDArray[np.float64]:
        """(N,) what examples are sorted by: what is padded, which is frames, and positions where they are, too."""
        tokens, frames = self.scales
        return self.frames / frames + (1e-3 if self.budget.packed else 1.0) * self.positions / tokens

    def shares(self, order: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """What micro-batches take of the token budget and of the frame budget, padding included.

        Without a budget the share is of sixteen mean examples.

        Args:
            order: Examples, micro-batch after micro-batch.
            ends: Where each micro-batch ends in ``order``.
        """
        starts = np.concatenate([[0], ends[:-1]])
        counts = ends - starts
        tokens = self.positions[order]
        tokens = np.add.reduceat(tokens, starts) if self.budget.packed else np.maximum.reduceat(tokens, starts) * counts
        return tokens / self.scales[0], np.maximum.reduceat(self.frames[order], starts) * counts / self.scales[1]

    def windows(
        self, examples: NDArray[np.int64], places: NDArray[np.int64], *, seed: int, epoch: int, window: int
    ) -> list[NDArray[np.int64]]:
        """Micro-batches of an epoch's examples, or of some of them.

        Args:
            examples: (M,) the epoch's examples.
            places: Places in ``examples`` that are packed, in random order.
            seed: The plan's seed.
            epoch: The epoch.
            window: Examples among which lengths are matched.

        Returns:
            The places in each micro-batch.
        """
        keys = self.sizes[examples]
        if len(places) <= window:
            # Without some noise a data set of one window would fall into the same batches in every epoch.
            keys = keys * (1 + JITTER * (draws(seed, epoch, len(examples), "jitter") / 2.0**64))
        batches: list[NDArray[np.int64]] = []
        left = places[:0]
        for begin in range(0, len(places), window):
            pool = np.concatenate([left, places[begin : begin + window]])
            pool = pool[np.argsort(-keys[pool], kind="stable")]
            members = examples[pool]
            full, rest = fill(self.positions[members].tolist(), self.frames[members].tolist(), self.budget)
            batches += [pool[batch] for batch in full]
            left = pool[rest]
        if len(left):
            batches.append(left)
        return batches

    def arrange(
        self, examples: NDArray[np.int64], batches: list[NDArray[np.int64]], *, seed: int, epoch: int, start: int
    ) -> list[NDArray[np.int64]]:
        """Micro-batches in the order in which they come: steps of equal cost, in random order.

        Args:
            examples: (M,) the epoch's examples.
            batches: Places in ``examples``.
            seed: The plan's seed.
            epoch: The epoch.
            start: Number of the first micro-batch, from which steps are counted.
        """
        group, count = self.micro_batches_per_step, len(batches)
        order = permutation(seed, epoch, count, "micro-batches")
        head = min(-start % group, count)  # these complete the step that was begun before
        groups = (count - head) // group
        if group > 1 and groups > 1:
            flat = examples[np.concatenate(batches)]
            costs = np.add(*self.shares(flat, np.cumsum([len(batch) for batch in batches], dtype=np.int64)))
            body = order[head : head + groups * group]
            body = body[np.argsort(costs[body], kind="stable")].reshape(groups, group)
            body = body[permutation(seed, epoch, groups, "steps")]
            within = draws(seed, epoch, body.size, "within").reshape(groups, group).argsort(axis=1, kind="stable")
            body = np.take_along_axis(body, within, axis=1).reshape(-1)
            order = np.concatenate([order[:head], body, order[head + groups * group :]])
        numbers: list[int] = order.tolist()
        return [batches[number] for number in numbers]
