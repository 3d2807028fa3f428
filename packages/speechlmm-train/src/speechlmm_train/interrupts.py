"""Ctrl-C that reaches a process more than once: from the terminal, and again from a program that stands above it.

`uv run` and other wrappers hand on a signal that the whole process group has had already. The second one must not end
what the first one has begun to say and to write. Imports no torch.
"""

from __future__ import annotations

import atexit
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SAME_S = 2.0
"""Seconds in which several signals are the same Ctrl-C."""


def heed_once() -> None:
    """Lets this process be interrupted once by each Ctrl-C, from now on; a handler of somebody's own stays."""
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _once(KeyboardInterrupt))
        # Python takes its handlers away while it ends, and the system would have the last word on the exit code.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


@contextmanager
def interrupted_by(fault: Callable[[], BaseException]) -> Iterator[None]:
    """Raises an exception of one's own in the block, once for each Ctrl-C.

    Args:
        fault: Makes the exception.
    """
    before: Any = signal.signal(signal.SIGINT, _once(fault))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _once(fault: Callable[[], BaseException]) -> Callable[[int, FrameType | None], None]:
    last = float("-inf")

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= SAME_S:
            last = now
            raise fault()

    return interrupt
