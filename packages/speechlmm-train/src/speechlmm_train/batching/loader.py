"""Reads a rank's micro-batches in the order of the batch plan, in worker processes.

A worker loads, tokenises and collates a whole micro-batch; the plan stays in the main process. What comes out depends
on the plan and nothing else: not on the number of workers, nor on the step at which the loader starts.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.draw import draw
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import as_examples
from speechlmm_core.errors import DataError, MediaError, SpeechLMMError
from speechlmm_core.processor.processor import Transform
from speechlmm_train.batching.epoch import MicroBatch
from speechlmm_train.batching.parcel import Parcel, wrap
from speechlmm_train.batching.plan import BatchPlan
from speechlmm_train.batching.spacers import Spacers
from speechlmm_train.batching.worker_signals import leave_signals_to_the_parent

ORIGIN = "origin"
"""Key of a batch's example numbers in the plan (`examples`; samples beyond them are spacers) and (S,) the numbers of
their tasks (`tasks`; on the host, `host_tasks`)."""

Batch = dict[str, Any]
Augment = Callable[[int], Transform]


class Collating(Protocol):
    """What of the processor is needed here."""

    def sample(self, messages: Sequence[Message], *, with_answer: bool, transform: Any = None) -> Any:
        """Loads and tokenises a conversation."""
        ...

    def collate(self, samples: Sequence[Any], *, packed: bool = False) -> Batch:
        """Lays out a batch."""
        ...


class TrainingBatches:
    """A rank's micro-batches from a step on, without end.

    It shards by itself and must not go through `accelerator.prepare`, which would shard it again.

    Args:
        examples: The dataset.
        processor: Loads, tokenises and collates.
        plan: Which examples come when.
        indices: (N,) the plan's example numbers as numbers of the dataset, where some examples were left out.
        rank: This process.
        world_size: Number of processes.
        start_step: First step; nothing is replayed to get there.
        num_workers: Worker processes; 0 to load in this one.
        prefetch_factor: Micro-batches that each worker prepares ahead.
        augment: Gives, for a number drawn from (seed, epoch, index), what changes the example's media.
        pin_memory: Whether batches are copied to page-locked memory; by default where there is a GPU.
        advice: What to do about media that cannot be used; ends their messages.
        spacers: Media for micro-batches that have none of an input.

    Raises:
        ConfigError: The number of ranks does not divide the micro-batches of a step.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        processor: Collating,
        plan: BatchPlan,
        *,
        indices: Sequence[int] | NDArray[np.int64] | None = None,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        augment: Augment | None = None,
        pin_memory: bool | None = None,
        advice: str | None = None,
        spacers: Spacers | None = None,
    ) -> None:
        plan.check_world_size(world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, got {rank}")
        self.plan = plan
        self.rank, self.world_size, self.start_step = rank, world_size, start_step
        self.num_workers, self.prefetch_factor = num_workers, prefetch_factor
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._dataset = _MicroBatches(
            examples,
            processor,
            plan.seed,
            plan.budget.packed,
            indices=indices,
            augment=augment,
            advice=advice,
            tasks=plan.mix.task_numbers,
            spacers=spacers,
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yields micro-batches.

        Raises:
            MediaError: A medium cannot be loaded; names the example and its place in the manifest.
            DataError: An example cannot be used; likewise.
        """
        if self.num_workers:
            # Read by the Rust tokenizers after a fork; without it they warn of what workers do not do.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        with warnings.catch_warnings():
            # The user chose the number of workers, and torch's own threads do not run in what is forked here.
            warnings.filterwarnings("ignore", message=".*DataLoader will create", category=UserWarning)
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
            batches = iter(self._loader())
        for batch in batches:
            if isinstance(batch, SpeechLMMError):
                raise batch
            yield batch.open() if isinstance(batch, Parcel) else batch

    def load(self, micro_batch: MicroBatch) -> Batch:
        """Loads one micro-batch, in this process and out of turn.

        Raises:
            MediaError: A medium cannot be loaded; names the example and its place in the manifest.
            DataError: An example cannot be used; likewise.
        """
        batch = self._dataset.load(micro_batch)
        if isinstance(batch, SpeechLMMError):
            raise batch
        return batch

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(
            self._dataset,
            sampler=_Rank(self.plan, self.rank, self.world_size, self.start_step),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
            pin_memory=self.pin_memory,
            worker_init_fn=_start_worker,
            # Of its own, so that the workers' seed is not drawn from the generator that training uses.
            generator=torch.Generator().manual_seed(self.plan.seed),
            # Forked workers share the dataset's memory and import nothing anew; they never touch a GPU.
            multiprocessing_context="fork" if self.num_workers and sys.platform == "linux" else None,
        )

    def locate(self, number: int) -> dict[str, str]:
        """An example of the plan: its `id` and its `place`."""
        index = self._dataset.index(number)
        return {"id": self._dataset.examples.example(index).id, "place": self._dataset.examples.place(index)}

    def steps(self) -> Iterator[list[Batch]]:
        """Yields the rank's micro-batches of one step at a time."""
        batches = iter(self)
        while True:
            yield [next(batches) for _ in range(self.plan.micro_batches_per_step // self.world_size)]


class _Rank:
    """The places in the plan that a rank takes."""

    def __init__(self, plan: BatchPlan, rank: int, world_size: int, start_step: int) -> None:
        self.plan, self.rank, self.world_size, self.step = plan, rank, world_size, start_step

    def __iter__(self) -> Iterator[MicroBatch]:
        step = self.step
        while True:
            yield from self.plan.rank(step, self.rank, self.world_size)
            step += 1


class _MicroBatches(Dataset[Any]):
    """Loads whole micro-batches."""

    def __init__(
        self,
        examples: Sequence[Example],
        processor: Collating,
        seed: int,
        packed: bool,
        *,
        indices: Sequence[int] | NDArray[np.int64] | None,
        augment: Augment | None,
        advice: str | None,
        tasks: NDArray[np.int64],
        spacers: Spacers | None,
    ) -> None:
        self.tasks, self.spacers = tasks, spacers
        self.examples, self.processor, self.seed, self.packed = as_examples(examples), processor, seed, packed
        self.indices, self.augment, self.advice = indices, augment, advice

    def __getitem__(self, batch: MicroBatch) -> Batch | Parcel | SpeechLMMError:
        loaded = self.load(batch)
        return loaded if get_worker_info() is None or isinstance(loaded, SpeechLMMError) else wrap(loaded)

    def load(self, batch: MicroBatch) -> Batch | SpeechLMMError:
        # An error travels as a value: raised in a worker, it would come out wrapped in that worker's traceback.
        try:
            samples = [self._sample(*one) for one in zip(batch.rounds, batch.indices, strict=True)]
            if self.spacers is not None:
                samples = self.spacers.fill(samples)
            filled = tuple(dict.fromkeys(name for sample in samples[len(batch.indices) :] for name, _ in sample.media))
            tasks = np.zeros(len(samples), np.int64)  # spacers have a task as well, and no loss
            tasks[: len(batch.indices)] = self.tasks[batch.indices]
            origin = {"examples": np.asarray(batch.indices), "host_tasks": tasks, "tasks": torch.as_tensor(tasks)}
            origin["spacers"] = filled
            return {**self.processor.collate(samples, packed=self.packed), ORIGIN: origin}
        except SpeechLMMError as exc:
            return exc

    def index(self, number: int) -> int:
        """Number in the dataset of an example of the plan."""
        return number if self.indices is None else int(self.indices[number])

    def _sample(self, epoch: int, number: int) -> Any:
        index = self.index(number)
        transform = self.augment(draw(self.seed, epoch, index, "augmentation")) if self.augment else None
        try:
            messages = self.examples.chat(index, draw=draw(self.seed, epoch, index))
            return self.processor.sample(messages, with_answer=True, transform=transform)
        except SpeechLMMError as exc:
            kind = MediaError if isinstance(exc, MediaError) else DataError
            name = self.examples.example(index).id
            advice = f"; {self.advice}" if self.advice and kind is MediaError else ""
            raise kind(f"{self.examples.place(index)}: example {name!r}: {exc}{advice}") from exc


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    # Workers run beside each other; more threads each would only take turns on the same cores.
    torch.set_num_threads(1)
    leave_signals_to_the_parent()
