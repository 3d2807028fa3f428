"""What holds while processes run: environment, a time limit, signals that are passed on, logs that are shown."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from speechlmm_train.launch.tail import Follower

_STOPPING_S = 600
"""Seconds that ranks have to save a checkpoint after SIGTERM."""


class StoppingError(Exception):
    """Ranks have not ended long after SIGTERM."""


@contextmanager
def alarm(seconds: float | None) -> Iterator[None]:
    """Raises TimeoutError in the block when the time is up."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before: Any = signal.signal(signal.SIGALRM, ring)
    running = signal.setitimer(signal.ITIMER_REAL, seconds or 0)  # whoever calls this may have an alarm of their own
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *running)


@contextmanager
def passing_on(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Hands signals to the processes that this one has started, which may save a checkpoint before they end.

    Raises:
        StoppingError: In the block, when they have not ended long after.
    """
    import psutil

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise StoppingError

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                child.send_signal(number)
        signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, _STOPPING_S)

    before: dict[signal.Signals, Any] = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def following(followers: Sequence[Follower]) -> Iterator[None]:
    """Shows logs as they grow; at the end of the block they are shown whole."""
    runs: list[Callable[[], None]] = [follower.run for follower in followers]
    threads = [threading.Thread(target=run, daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for follower in followers:
            follower.stop()
        for thread in threads:
            thread.join()
