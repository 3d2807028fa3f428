"""The batch plan: one endless, global sequence of micro-batches, a pure function of lengths, mix, seed and budgets.

Nothing else decides which examples are trained on when. A step is `micro_batches_per_step` micro-batches; of W ranks,
rank r takes the micro-batches r, r + W, … of each step. So a run that is resumed at any step, with other ranks or
other data workers, sees the same examples in the same order, and nothing is replayed to get there.

An epoch's examples are drawn by weight (`speechlmm_train.batching.mix`), shuffled and cut into windows; a window is
sorted by length and filled into micro-batches that waste little padding (`speechlmm_train.batching.fill`). The
micro-batches of an epoch are then shuffled in groups of one step each, the members of a group costing about the same so
that ranks do not wait for each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechlmm_core.errors import ConfigError, DataError
from speechlmm_train.batching.epoch import Epoch, MicroBatch
from speechlmm_train.batching.fill import Budget
from speechlmm_train.batching.mix import Mix
from speechlmm_train.batching.pack import Packer
from speechlmm_train.batching.stream import Alternation, Stream

FRAMES_PER_TOKEN_BUDGET = 1.15


def frames_for(token_budget: int, positions: NDArray[np.int64], frames: NDArray[np.int64]) -> int | None:
    """The frame budget that goes with a token budget; None where no example has frames."""
    if not frames.any():
        return None
    share = frames.sum() / positions.sum()
    return max(math.ceil(FRAMES_PER_TOKEN_BUDGET * token_budget * share), int(frames.max()))


class BatchPlan:
    """An endless sequence of micro-batches, indexed by step.

    Args:
        positions: (N,) positions of the language model that each example takes.
        frames: (N,) encoder output frames of each example.
        token_budget: Positions in a micro-batch: their sum if ``packed``, else examples times the longest.
        frame_budget: Encoder frames in a micro-batch, padding included: examples times the longest. By default 1.15
            times the frames that a full token budget holds on average: enough room to fill the token budget.
        batch_size: A fixed number of examples in a micro-batch, in place of the budgets.
        micro_batches_per_step: G, the global batch.
        seed: Seed of every shuffle.
        window: Examples among which lengths are matched.
        packed: Whether the samples of a micro-batch share one row, without padding.
        oversized: What to do with an example that is longer than a budget: refuse it, or let it come alone.
        place: Names an example in messages (``train.jsonl:12``).
        mix: What an epoch holds; by default each example once.
        digest_of_rows: Gives a digest of the rows that the examples are made of.

    Raises:
        ConfigError: The arguments contradict each other.
        DataError: There are no examples, or some are longer than a budget.
    """

    def __init__(
        self,
        positions: ArrayLike,
        frames: ArrayLike,
        *,
        token_budget: int | None = None,
        frame_budget: int | None = None,
        batch_size: int | None = None,
        micro_batches_per_step: int = 1,
        seed: int = 0,
        window: int = 10_000,
        packed: bool = True,
        oversized: str = "error",
        place: Callable[[int], str] | None = None,
        mix: Mix | None = None,
        digest_of_rows: Callable[[], str] | None = None,
    ) -> None:
        self._digest_of_rows = digest_of_rows
        self.positions = np.ascontiguousarray(positions, dtype=np.int64)
        self.frames = np.ascontiguousarray(frames, dtype=np.int64)
        self.micro_batches_per_step = micro_batches_per_step
        self.seed = seed
        self.window = window
        numbers = {"micro_batches_per_step": micro_batches_per_step, "window": window}
        numbers |= {"token_budget": token_budget, "frame_budget": frame_budget, "batch_size": batch_size}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value!r}")
        if batch_size is not None and (token_budget is not None or frame_budget is not None):
            raise ConfigError("batch_size and the budgets exclude each other; set batch_size, or token_budget")
        if batch_size is None and token_budget is None and frame_budget is None:
            raise ConfigError("set token_budget and frame_budget, or batch_size")
        if oversized not in ("error", "alone"):
            raise ConfigError(f"oversized must be 'error' or 'alone', got {oversized!r}")
        if self.positions.ndim != 1 or self.positions.shape != self.frames.shape:
            raise ConfigError(f"expected one length each, got {self.positions.shape} and {self.frames.shape}")
        if not len(self.positions):
            raise DataError("there are no examples to train on")
        if frame_budget is None and token_budget is not None:
            frame_budget = frames_for(token_budget, self.positions, self.frames)
        self.budget = Budget(
            tokens=math.inf if token_budget is None else token_budget,
            frames=math.inf if frame_budget is None else frame_budget,
            packed=packed,
            batch_size=batch_size,
        )
        if batch_size is None and oversized == "error":
            self._check_sizes(place or "example {}".format)
        self.mix = mix or Mix.plain(len(self.positions))
        self.packer = Packer(self.positions, self.frames, self.budget, window, micro_batches_per_step)
        kind = Alternation if self.mix.mixing == "alternating" else Stream
        self._stream = kind(self.packer, self.mix, seed)

    @cached_property
    def rows(self) -> str | None:
        """Digest of the rows that the examples are made of; None where that is not known."""
        return None if self._digest_of_rows is None else self._digest_of_rows()

    def micro_batch(self, step: int, number: int) -> list[int]:
        """The examples of one micro-batch of a step."""
        return self.item(step, number).indices

    def step(self, step: int) -> list[list[int]]:
        """The examples of all G micro-batches of a step."""
        return [self.micro_batch(step, number) for number in range(self.micro_batches_per_step)]

    def rank(self, step: int, rank: int, world_size: int) -> list[MicroBatch]:
        """The micro-batches of a step that a rank processes.

        Raises:
            ConfigError: The number of ranks does not divide the micro-batches of a step.
        """
        self.check_world_size(world_size)
        return [self.item(step, number) for number in range(rank, self.micro_batches_per_step, world_size)]

    def check_world_size(self, world_size: int) -> None:
        """Makes sure that every rank gets the same number of micro-batches.

        Raises:
            ConfigError: The number of ranks does not divide the micro-batches of a step.
        """
        total = self.micro_batches_per_step
        if world_size < 1 or total % world_size:
            fitting = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
            raise ConfigError(
                f"{world_size} ranks cannot share micro_batches_per_step = {total} evenly; "
                f"use {fitting} ranks, or a multiple of {world_size} micro-batches"
            )

    def item(self, step: int, number: int) -> MicroBatch:
        """One micro-batch of a step with its epoch."""
        if step < 0 or not 0 <= number < self.micro_batches_per_step:
            raise IndexError(f"no micro-batch {number} in step {step}")
        return self._stream.item(step * self.micro_batches_per_step + number)

    def examples(self, first_step: int, last_step: int) -> Iterator[NDArray[np.int64]]:
        """The examples of the steps from ``first_step`` to before ``last_step``, of all ranks, in pieces."""
        yield from self._stream.examples(*(step * self.micro_batches_per_step for step in (first_step, last_step)))

    def position(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps so that `go_to` finds a step at once, however many epochs lie before it."""
        return self._stream.position(step * self.micro_batches_per_step)

    def go_to(self, position: dict[str, Any]) -> None:
        """Takes over from `position` of an equal plan where its epoch starts; everything before is made on demand."""
        self._stream.go_to(position)

    def epoch_steps(self, epoch: int = 0) -> float:
        """Steps that an epoch takes, with a fraction: steps run across the ends of epochs."""
        table = self._stream.mean_length() if epoch == 0 else len(self.epoch(epoch))
        return table / self.micro_batches_per_step

    def shares(self, order: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """What micro-batches take of the token budget and of the frame budget, padding included.

        Without a budget the share is of sixteen mean examples.

        Args:
            order: Examples, micro-batch after micro-batch.
            ends: Where each micro-batch ends in ``order``.
        """
        return self.packer.shares(order, ends)

    def fill(self, epoch: int = 0) -> float:
        """How full an epoch's micro-batches are: the mean of the larger of their two shares."""
        while not len(table := self.epoch(epoch)):  # no task completes a step of its own in it
            epoch += 1
        return float(np.maximum(*self.shares(table.order, table.ends)).mean())

    def epoch(self, epoch: int) -> Epoch:
        """The table of an epoch; the epochs before it are made if they are not known."""
        return self._stream.epoch(epoch)

    def _check_sizes(self, place: Callable[[int], str]) -> None:
        for name, lengths, budget, unit in (
            ("token_budget", self.positions, self.budget.tokens, "positions"),
            ("frame_budget", self.frames, self.budget.frames, "encoder frames"),
        ):
            longer = np.flatnonzero(lengths > budget)
            if len(longer):
                worst = int(longer[np.argmax(lengths[longer])])
                raise DataError(
                    f"{len(longer)} example(s) are longer than {name} = {budget:.0f}; the longest, {place(worst)}, has "
                    f"{lengths[worst]} {unit}. Raise the budget to {lengths[worst]}, or set "
                    "data.oversized=skip, which leaves such examples out, or =alone, which gives each a micro-batch "
                    "of its own"
                )
