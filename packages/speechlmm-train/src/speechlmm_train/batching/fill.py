"""Fills micro-batches from a window of examples that are sorted by length.

Examples that lie next to each other waste little padding. What is left of the token budget when the next one no
longer fits is given to shorter ones that fit exactly, as long as the padding that they bring stays within the frame
budget.

Plain Python on lists: a batch holds a dozen examples, too few for NumPy to pay (0.4 µs an example).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

STEPS_BACK = 64
SLACK = 0.02


@dataclass(frozen=True)
class Budget:
    """What a micro-batch may hold; padding counts."""

    tokens: float
    """Positions of the language model: their sum if packed, else examples times the longest."""
    frames: float
    """Frames of the encoders: examples times the longest."""
    packed: bool = True
    batch_size: int | None = None
    """A fixed number of examples in place of the budgets."""


def fill(tokens: Sequence[int], frames: Sequence[int], budget: Budget) -> tuple[list[list[int]], list[int]]:
    """Groups a window into micro-batches.

    Args:
        tokens: Positions of each example; the window is sorted by length, longest first.
        frames: Encoder frames of each example.
        budget: What a micro-batch may hold. An example that is longer than that comes alone.

    Returns:
        The batches as indices into the window, and the indices that were left over when the window ran out.
    """
    if budget.batch_size is not None:
        size = budget.batch_size
        cuts = [list(range(start, min(start + size, len(tokens)))) for start in range(0, len(tokens), size)]
        rest = cuts.pop() if cuts and len(cuts[-1]) < size else []
        return cuts, rest
    return _Filler(tokens, frames, budget).run()


class _Filler:
    def __init__(self, tokens: Sequence[int], frames: Sequence[int], budget: Budget) -> None:
        self.tokens, self.frames, self.budget = tokens, frames, budget
        self.used = bytearray(len(tokens))
        self.by_tokens = sorted(range(len(tokens)), key=tokens.__getitem__)  # shortest first
        self.sorted_tokens = [tokens[i] for i in self.by_tokens]

    def run(self) -> tuple[list[list[int]], list[int]]:
        batches: list[list[int]] = []
        at, count = 0, len(self.tokens)
        while at < count:
            if self.used[at]:
                at += 1
                continue
            batch, total, longest, at = self.consecutive(at)
            if at == count:
                return batches, batch
            if self.budget.packed:
                at = min(at, self.top_up(batch, total, longest, at))
            batches.append(batch)
        return batches, []

    def consecutive(self, at: int) -> tuple[list[int], int, int, int]:
        """Takes examples in their order until one does not fit.

        Returns:
            Those, what they take of the token budget, their most frames, and where to go on: at the end, none was
            left that did not fit.
        """
        tokens, frames, used, packed = self.tokens, self.frames, self.used, self.budget.packed
        max_tokens, max_frames = self.budget.tokens, self.budget.frames
        batch: list[int] = []
        size = total = longest = widest = 0
        for place in range(at, len(tokens)):
            if used[place]:
                continue
            own, most = tokens[place], frames[place]
            # Comparisons rather than `max`: this loop is most of what a plan costs.
            most = most if most > longest else longest
            widest = own if own > widest else widest
            size += 1
            needed = total + own if packed else size * widest
            if (needed > max_tokens or size * most > max_frames) and batch:
                return batch, total, longest, place
            total, longest = needed, most
            used[place] = 1
            batch.append(place)
        return batch, total, longest, len(tokens)

    def top_up(self, batch: list[int], total: int, longest: int, at: int) -> int:
        """Gives what is left of the token budget to shorter examples; returns where to go on."""
        limit = self.budget.tokens
        while limit - total > SLACK * limit and (len(batch) + 1) * longest <= self.budget.frames:
            found = self.best(limit - total, longest)
            if found is None:
                return self.split_last(batch, total, longest, at)
            self.used[found] = 1
            batch.append(found)
            total += self.tokens[found]
        return at

    def split_last(self, batch: list[int], total: int, longest: int, at: int) -> int:
        """Nothing is as short as what is left: puts the last one back, and two shorter ones into its place."""
        last = batch[-1]
        room = self.budget.tokens - total + self.tokens[last]
        first = self.best(room / 2, longest)
        if len(batch) < 2 or first is None:
            return at
        self.used[first] = 1
        second = self.best(room - self.tokens[first], longest)
        if second is None or self.tokens[first] + self.tokens[second] <= self.tokens[last]:
            self.used[first] = 0
            return at
        self.used[second], self.used[last] = 1, 0
        batch[-1:] = [first, second]
        return last

    def best(self, room: float, longest: int) -> int | None:
        """The largest unused example that needs at most ``room`` positions and no more frames than ``longest``."""
        place = bisect_right(self.sorted_tokens, room) - 1
        for at in range(place, max(place - STEPS_BACK, -1), -1):
            found = self.by_tokens[at]
            if not self.used[found] and self.frames[found] <= longest:
                return found
        return None
