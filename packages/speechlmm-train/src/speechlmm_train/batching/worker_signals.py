# pyright: strict
"""Signals in data workers: a job that is to stop is told in all of its processes, but a step still needs its data."""

from __future__ import annotations

import os
import signal
import threading


def leave_signals_to_the_parent() -> None:
    """Ends a worker on SIGTERM only where that comes from the process it works for.

    A batch system that takes a node away sends SIGTERM to every process on it. The one that trains goes on to the end
    of its step, for which it needs its workers.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS: no way to tell who sent a signal
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads that are started later inherit it
    threading.Thread(target=_wait, args=(os.getppid(),), daemon=True, name="signals").start()


def _wait(parent: int) -> None:
    while True:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        if sender == parent or os.getppid() != parent:
            os._exit(0)
