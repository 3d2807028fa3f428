"""How an objective's loss has gone so far, by which an explosion is told from a step that is merely bad."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

WINDOW = 100
"""Steps of the running median."""
FIRST = 20
"""Steps after which a median is one."""
IN_A_ROW = 3
"""Steps for which a loss has to be too high."""
HARMLESS = 10.0
"""Losses that are never too high: that of guessing among 22,000 tokens."""


@dataclass
class LossHistory:
    """What is remembered of a loss; goes into checkpoints, so that a run that is resumed knows what is usual."""

    recent: list[float] = field(default_factory=list[float])
    """The last steps that were not too high."""
    first: float | None = None
    """Median of the first steps."""
    above: int = 0
    """Steps in a row that were too high."""

    def limit(self, factor: float) -> float:
        """What a loss may come to."""
        if self.first is None:
            return math.inf
        return max(factor * median(self.recent), 2 * self.first, HARMLESS)

    def take(self, value: float, factor: float) -> float | None:
        """Takes a step's loss; the limit, where it has been above that for too long."""
        limit = self.limit(factor)
        if value > limit:
            self.above += 1
            return limit if self.above >= IN_A_ROW else None
        self.above = 0
        self.recent.append(value)
        del self.recent[:-WINDOW]
        if self.first is None and len(self.recent) >= FIRST:
            self.first = median(self.recent)
        return None
