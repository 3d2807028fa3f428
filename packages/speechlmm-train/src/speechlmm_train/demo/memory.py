"""Memory of a run: the peak over all its processes."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

import psutil


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
