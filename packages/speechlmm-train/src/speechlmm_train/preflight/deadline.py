"""Time that checks may take."""

from __future__ import annotations

import time


class Deadline:
    """A moment after which no further check is begun.

    Args:
        seconds: From now on.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds until then; none once it is over."""
        return max(self._end - time.perf_counter(), 0.0)

    def part(self, seconds: float) -> Deadline:
        """A deadline of its own for one check, within this one."""
        return Deadline(min(seconds, self.left))
