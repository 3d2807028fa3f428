"""Why processes ended as they did, by their logs."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path

from speechlmm_train.launch.tail import tail
from speechlmm_train.preempted import PREEMPTED

_FAULTS = 5


def reason_of(logs: Path, code: int, ranks: Iterable[int]) -> str:
    """What ranks say of why they failed, in their logs.

    Args:
        logs: Folder of the logs.
        code: The exit code of the first that failed.
        ranks: Their numbers.
    """
    for rank in ranks:
        if said := faults_in(logs / f"rank-{rank}.err"):
            return "; ".join(said[:_FAULTS])
    return "" if code == PREEMPTED else f"{_way(code)}; see the logs in {logs}"


def faults_in(log: Path) -> list[str]:
    """The faults that a process has told in its log."""
    return [line.removeprefix("error:").strip() for line in tail(log, 200) if line.startswith("error:")]


def _way(code: int) -> str:
    try:
        return f"ended by {signal.Signals(code - 128).name}"
    except ValueError:
        return f"exit code {code}"
