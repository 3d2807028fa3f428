"""The bars of a preparation, on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SLOW_ROWS = 20_000
"""Listing fewer rows takes no time worth a bar."""


class Progress:
    """Bars for listing and reading; a context manager around reading.

    Args:
        shown: Whether there are any.
    """

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self._bar: Any = None
        self._hours = 0.0
        self._started = 0.0

    @contextmanager
    def listing(self, name: str, count: int) -> Iterator[Callable[[int], object]]:
        """A bar for the rows of a part; yields what is told how many were listed."""
        if not self.shown or count < SLOW_ROWS:
            yield lambda _: None
            return
        from tqdm import tqdm

        with tqdm(total=count, desc=f"list {name}", unit="rows", unit_scale=True, leave=False) as bar:
            yield bar.update

    def counting(self, name: str, count: int) -> Callable[[int], object]:
        """Starts a bar for the sizes of a dataset's examples; returns what is told how many were counted."""
        self.__exit__()
        if not self.shown:
            return lambda _: None
        from tqdm import tqdm

        self._bar = tqdm(total=count, desc=f"count {name}", unit="examples", unit_scale=True)
        return self._bar.update

    def reading(self, count: int) -> Callable[[int, float], None]:
        """Starts the bar for media; returns what is told how many were read, and how many hours they are."""
        self._started = time.monotonic()
        if self.shown and count:
            from tqdm import tqdm

            self._bar = tqdm(total=count, desc="read", unit="files", unit_scale=True)
        return self._advance

    def _advance(self, count: int, hours: float) -> None:
        if self._bar is not None:
            self._hours += hours
            elapsed = max(time.monotonic() - self._started, 1e-6)
            self._bar.set_postfix_str(f"{self._hours:.1f} h, {self._hours / elapsed:.2f} h/s", refresh=False)
            self._bar.update(count)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
