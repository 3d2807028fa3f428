"""Memory of a run: the peak over all its processes, and an allocator setting that spares page faults."""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import suppress

import psutil

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed blocks instead of returning them to the system at once.

    Training on the CPU allocates and frees the same large blocks at every step; by default each one is mapped anew,
    and the kernel clears its pages again. Returns whether the C library took the settings.
    """
    try:
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)) and bool(libc.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES))
    except (OSError, AttributeError):
        return False


class PeakMemory:
    """Watches the resident memory of this process and all below it, in a thread."""

    def __init__(self, interval_s: float = 0.5) -> None:
        self.peak_bytes = 0
        self._interval = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="speechlmm-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def sample(self) -> None:
        """Takes one reading."""
        me = psutil.Process(os.getpid())
        total = 0
        for process in [me, *me.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_info().rss
        self.peak_bytes = max(self.peak_bytes, total)

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()
