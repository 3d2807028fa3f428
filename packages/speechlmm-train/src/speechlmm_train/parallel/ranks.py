"""The processes of a training: who they are, and what they tell each other. Imports torch late.

Figures and gradients go through accelerate; what stands here is for everything else: opening data, checking a folder,
writing a checkpoint, where one process works and the others have to hear how it ended.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from speechlmm_core.errors import OutOfStepError, SpeechLMMError
from speechlmm_train.parallel.leaving import OF_ONE, leave

T = TypeVar("T")
V = TypeVar("V")

TIMEOUT_S = 1800.0
"""Seconds that processes wait for each other, unless `training.ddp_timeout` says otherwise."""
_LATE = ("timed out waiting", "timed out after", "watchdog caught collective operation timeout", "wait timeout")
ELSEWHERE = "its own message says why"
"""Ends the message of a process that was left alone by another."""
_GONE = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")
"""What gloo and NCCL say of a process that does not answer, and of one that is no more."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees them; by default there is one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    group: Any = None
    """Process group for messages, over the host's network; None where there is one process."""
    timeout_s: float = TIMEOUT_S

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @classmethod
    def of_environment(cls) -> Ranks:
        """What the launcher says, without a word to the other processes."""
        numbers = [int(os.environ.get(name, OF_ONE[name])) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
        return cls(*numbers)

    @classmethod
    def start(cls, *, on_cpu: bool, alone: bool = False, timeout_s: float = TIMEOUT_S) -> Ranks:
        """Joins the other processes that the launcher started.

        Args:
            on_cpu: Whether the training runs on the CPU.
            alone: Make a process group even where there is one process: ZeRO and FSDP need one.
            timeout_s: Seconds to wait for the others, here and later.

        Raises:
            SpeechLMMError: Not all of them came.
        """
        found = cls.of_environment()
        if found.world_size == 1 and not alone:
            return found
        import torch
        from torch import distributed

        limit = timedelta(seconds=timeout_s)
        on_gpu = torch.cuda.is_available() and not on_cpu
        if on_gpu:
            torch.cuda.set_device(found.local_rank)
        started = "MASTER_ADDR" in os.environ
        if not started:
            os.environ.update(OF_ONE)
        if not distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            try:
                if started:
                    distributed.init_process_group(backend, timeout=limit)
                else:
                    _alone(backend, limit)
            except (RuntimeError, ValueError) as exc:
                where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
                raise SpeechLMMError(
                    f"rank {found.rank}: the {found.world_size} processes did not all meet at {where} within "
                    f"{timeout_s:.0f} s ({' '.join(str(exc).split())[:200]}); see whether each of them, and each node, "
                    "has started, and that the port is free"
                ) from exc
            atexit.register(leave)
        group = distributed.new_group(backend="gloo", timeout=limit)
        return cls(found.rank, found.world_size, found.local_rank, group, timeout_s)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank."""
        if self.world_size == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.world_size
        with _Named("waiting for a value of every rank", self):
            distributed.all_gather_object(found, value, group=self.group)
        return found

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums of numbers over all ranks, on every rank; all have to give as many."""
        if self.world_size == 1:
            return list(values)
        import torch
        from torch import distributed

        found = torch.tensor(list(values), dtype=torch.float64)
        with _Named("waiting for numbers of every rank", self):
            distributed.all_reduce(found, group=self.group)
        return found.tolist()

    def broadcast(self, value: T | None) -> T:
        """The first rank's value, on every rank."""
        found: list[Any] = [value]
        if self.world_size > 1:
            from torch import distributed

            with _Named("waiting for a value of rank 0", self):
                distributed.broadcast_object_list(found, src=0, group=self.group)
        return found[0]

    def barrier(self, what: str) -> None:
        """Waits until every rank has come to the same place.

        Args:
            what: What they wait for, for the message where one does not come.

        Raises:
            SpeechLMMError: One did not come in time.
        """
        if self.world_size == 1:
            return
        from torch import distributed

        with _Named(what, self):
            distributed.barrier(group=self.group)

    def named(self, what: str) -> AbstractContextManager[None]:
        """Where processes meet by other means: a fault of theirs becomes one that says what was done meanwhile.

        Args:
            what: What is done.
        """
        return nullcontext() if self.world_size == 1 else _Named(what, self, alone=False)

    def together(self, work: Callable[[], T]) -> T:
        """Does something on every rank; if it fails on one, it fails on all with one message.

        Raises:
            Exception: This rank's own fault, or another's as a `SpeechLMMError`.
        """
        return self._agreed(*_attempt(work))

    def on_main(self, work: Callable[[], T]) -> T:
        """Does something on the first rank alone; every rank gets what came of it, or fails with its message.

        Raises:
            Exception: The first rank's fault.
        """
        result, fault = _attempt(work) if self.is_main else (None, None)
        self._agreed(None, fault)
        return self.broadcast(result)  # pyright: ignore[reportReturnType]  # None on main is what `work` gave

    def main_first(self, work: Callable[[], T]) -> T:
        """Does something on the first rank of each node, then on the others, which find its caches filled."""
        if self.world_size == 1:
            return work()
        first = self.local_rank == 0
        result, fault = _attempt(work) if first else (None, None)
        self._agreed(None, fault)
        if not first:
            result, fault = _attempt(work)
        return self._agreed(result, fault)

    def share(self, work: Callable[[], T], told: Callable[[T], V]) -> tuple[T, list[V]]:
        """As `together`, and what every rank has to tell of its result, in one exchange.

        Args:
            work: Done on every rank.
            told: What the others hear of its result.

        Returns:
            This rank's result, and what all ranks tell, in their order.
        """
        result, fault = _attempt(work)
        if self.world_size == 1:
            if fault is not None:
                raise fault
            return result, [told(result)]  # pyright: ignore[reportReturnType, reportArgumentType]
        message = None if fault is None else str(fault) or type(fault).__name__
        heard = self.gather((message, told(result) if fault is None else None))  # pyright: ignore[reportArgumentType]
        failed = [(rank, one) for rank, (one, _) in enumerate(heard) if one is not None]
        if failed:
            first, line = failed[0]
            if fault is not None and message == line:
                raise fault
            raise SpeechLMMError(line if first == 0 else f"rank {first}: {line}")
        return result, [one for _, one in heard]  # pyright: ignore[reportReturnType]

    def _agreed(self, result: Any, fault: BaseException | None) -> Any:
        def again() -> Any:
            if fault is not None:
                raise fault
            return result

        return self.share(again, lambda _: None)[0]


def _attempt(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return work(), None
    except OutOfStepError:  # the others hang where they are, and end with this process
        raise
    except Exception as exc:
        return None, exc


def _alone(backend: str, limit: timedelta) -> None:
    """A process group of one, which nobody has to be told of."""
    from torch import distributed
    from torch._C._distributed_c10d import HashStore  # where it comes from: torch.distributed does not list it

    distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=limit)


class _Named:
    """Turns the fault of a collective call into one line that says what was waited for.

    Args:
        what: What was done.
        ranks: The processes.
        alone: Whether nothing but a collective call can fail; otherwise its faults are told from others by their words.
    """

    def __init__(self, what: str, ranks: Ranks, *, alone: bool = True) -> None:
        self.what, self.ranks, self.alone = what, ranks, alone

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, value: BaseException | None, trace: Any) -> None:
        fault = value.__cause__ if isinstance(value, OutOfStepError) else value
        if not isinstance(fault, RuntimeError) or isinstance(fault, SpeechLMMError):
            return
        told = str(fault).lower()
        late = any(words in told for words in _LATE)
        if not (self.alone or late or any(words in told for words in _GONE)):
            return
        rank, what = self.ranks.rank, self.what
        if late:
            raise SpeechLMMError(
                f"rank {rank}: another process did not answer within {self.ranks.timeout_s:g} s ({what}); if one of "
                "them says why, see there, and if it only needs longer, raise training.ddp_timeout"
            ) from value
        raise SpeechLMMError(f"rank {rank}: another process ended ({what}); {ELSEWHERE}") from value
