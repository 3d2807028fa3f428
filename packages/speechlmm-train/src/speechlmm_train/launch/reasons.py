"""Why processes ended as they did, by their exit codes and their logs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.wording import INTERRUPTED
from speechlmm_train.launch.cause import Failure, first_cause
from speechlmm_train.launch.tail import tail
from speechlmm_train.parallel.ranks import ELSEWHERE
from speechlmm_train.preempted import PREEMPTED

_FAULTS = 5
_TRACEBACK = "Traceback (most recent call last)"


def failure_of(log: Path, code: int, *, name: str) -> Failure:
    """How a process failed: which signal ended it, else what it says in its log.

    Args:
        log: Its standard error.
        code: Its exit code, as `subprocess` gives it: below 0 if a signal ended it.
        name: What to call it.
    """
    said, raised = faults_in(log), raised_in(log)
    own = [line for line in said if not line.endswith(ELSEWHERE)]
    elsewhere = [line for line in (*said, raised) if line.endswith(ELSEWHERE)]
    number = 128 - code if code < 0 else code
    if elsewhere and not own:
        return Failure(number, elsewhere[-1])
    if code < 0:
        return Failure(number, f"{name} was ended by {signal_name(-code)}; see {log}")
    if own:
        return Failure(number, "; ".join(own[:_FAULTS]))
    if code == PREEMPTED:
        return Failure(number)
    return Failure(number, f"{name}: {raised or f'exit code {code}'}; see {log}")


def leave(logs: Path, rank: int, failure: Failure) -> None:
    """Leaves how the rank failed that ended the others beside its log, where its exit code is not."""
    with suppress(OSError):  # a full disk, say; what the logs tell is found without it
        write_text(_note(logs, rank), json.dumps([failure.code, failure.reason]) + "\n")


def reason_of(logs: Path, code: int, ranks: Iterable[int]) -> str:
    """Why ranks failed, by what their launcher has left, or what they say in their logs.

    Args:
        logs: Folder of the logs.
        code: The exit code of the one that ended the others.
        ranks: Their numbers.
    """
    found: dict[int, Failure] = {}
    for rank in ranks:
        with suppress(OSError, ValueError):
            left, reason = json.loads(_note(logs, rank).read_text(encoding="utf-8"))
            if left == code:
                return str(reason)
        log = log_of(logs, rank)
        if faults_in(log) or raised_in(log):
            found[rank] = failure_of(log, code, name=f"rank {rank}")
    by_signal = code > 128 and code != INTERRUPTED
    if by_signal or not found:  # a killed one says nothing
        found[-1] = Failure(code, "" if code == PREEMPTED else f"{_way(code)}; see the logs in {logs}")
    return found[first_cause(found)].reason


def log_of(logs: Path, rank: int) -> Path:
    """Where a rank's standard error is."""
    return logs / f"rank-{rank}.err"


def faults_in(log: Path) -> list[str]:
    """The faults that a process has told in its log."""
    return [line.removeprefix("error:").strip() for line in tail(log, 200) if line.startswith("error:")]


def raised_in(log: Path) -> str:
    """The exception at the end of the last traceback in a log; empty if there is none."""
    rows = tail(log, 200)
    starts = [index for index, row in enumerate(rows) if row.startswith(_TRACEBACK)]
    after = rows[starts[-1] + 1 :] if starts else []
    return next((row for row in after if not row[0].isspace()), "")


def signal_name(number: int) -> str:
    """What a signal is called."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"


def _note(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank}.failed"


def _way(code: int) -> str:
    try:
        return f"ended by {signal.Signals(code - 128).name}"
    except ValueError:
        return f"exit code {code}"
