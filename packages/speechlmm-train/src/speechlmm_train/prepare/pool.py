"""Reads media in several processes, and finds the one on which a decoder crashes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver

from speechlmm_train.prepare.media import Measured, Medium, measure_all

AHEAD = 4
"""Chunks that wait for each process."""
PRELOADED = ["__main__", "speechlmm_train.prepare.media"]
"""What processes need, imported once in a process of which they are forks."""


def start_ahead() -> None:
    """Starts, without waiting for it, the process of which those that read media are forks."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


class MediaPool:
    """Processes that read media; a context manager.

    Args:
        jobs: Number of processes; 0 to read in this one, where a decoder's crash ends everything.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> MediaPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, chunks: Iterable[Sequence[Medium]]) -> Iterator[list[Measured]]:
        """Reads chunks of media, and yields what was found as it is found; in no particular order."""
        if not self.jobs:
            yield from map(measure_all, chunks)
            return
        waiting: dict[Future[list[Measured]], Sequence[Medium]] = {}
        left = iter(chunks)
        more = True
        while more or waiting:
            while more and len(waiting) < AHEAD * self.jobs:
                chunk = next(left, None)
                if chunk is None:
                    more = False
                else:
                    waiting[self._submit(chunk)] = chunk
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                if future not in waiting:
                    continue
                try:
                    found = future.result()
                except BrokenProcessPool:
                    suspects = list(waiting.values())
                    waiting.clear()
                    self._stop()
                    for chunk in suspects:
                        yield self._apart(chunk)
                    break
                del waiting[future]
                yield found

    def _apart(self, chunk: Sequence[Medium]) -> list[Measured]:
        """Reads a chunk that may hold what a process crashes on: if it does, its halves."""
        try:
            return self._submit(chunk).result()
        except BrokenProcessPool:
            self._stop()
        if len(chunk) == 1:
            path = chunk[0].item.get("path")
            return [Measured(chunk[0].number, fault=f"{path}: the decoder crashed; check it or convert it")]
        half = len(chunk) // 2
        return [*self._apart(chunk[:half]), *self._apart(chunk[half:])]

    def _submit(self, chunk: Sequence[Medium]) -> Future[list[Measured]]:
        for _ in range(2):
            if self._pool is None:
                multiprocessing.set_forkserver_preload(PRELOADED)
                context = multiprocessing.get_context("forkserver")
                self._pool = ProcessPoolExecutor(self.jobs, mp_context=context, initializer=follow_parent)
            try:
                return self._pool.submit(measure_all, chunk)
            except BrokenProcessPool:  # by another chunk, which is noticed where its result is fetched
                self._pool = None
        failed: Future[list[Measured]] = Future()
        failed.set_exception(BrokenProcessPool("the processes end as soon as they start"))
        return failed

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def follow_parent() -> None:
    """Ctrl-C is the parent's to handle; and a parent that was killed takes its processes with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
