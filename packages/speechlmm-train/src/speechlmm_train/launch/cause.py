"""Which of several failures ended the others: the one rule for ranks, for their logs and for nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from speechlmm_train.parallel.ranks import ELSEWHERE
from speechlmm_train.preempted import PREEMPTED

TERMINATED = 143
"""The exit code of what SIGTERM ended."""
K = TypeVar("K")


@dataclass(frozen=True)
class Failure:
    """How a process, or a node, failed."""

    code: int
    """Its exit code; 128 and the number if a signal ended it."""
    reason: str = ""
    asked: bool = False
    """Whether all of its job was told to end (SIGTERM), which is enough to explain it."""

    @property
    def tells_of_another(self) -> bool:
        """Whether it says no more than that another process has ended."""
        return self.reason.endswith(ELSEWHERE)

    @property
    def follows(self) -> bool:
        """Whether it may well be what the end of others, or of all, brought about."""
        return self.code == TERMINATED or self.tells_of_another

    @property
    def _place(self) -> int:
        """Where it stands among others: before all, one that nothing else explains."""
        if self.asked:
            return 3
        if self.tells_of_another:
            return 4
        # SIGTERM ends the others when one has failed. Nothing is wrong with one that has stopped as it was asked to.
        return {PREEMPTED: 1, TERMINATED: 2}.get(self.code, 0)


def first_cause(failures: Mapping[K, Failure]) -> K:
    """The failure that ended the others; of several that may have, the first.

    One that merely tells of another's end comes last, and one that was ended by SIGTERM after those that crashed, were
    killed or say what is wrong.

    Args:
        failures: By what tells them apart, in the order in which they were seen; there is one at least.
    """
    return min(failures, key=lambda one: failures[one]._place)
