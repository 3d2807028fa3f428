"""The end of a process that worked with others: its group goes down, with nothing left at work. Imports torch late."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from speechlmm_train.environment import variables_kept

OF_ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
"""The environment variables by which accelerate and DeepSpeed know of a group, as they are for a single process."""
THREADS = "pt_gloo"
"""How torch names the threads in which gloo works (`c10d::ProcessGroupGloo::runLoop`)."""
SAMPLE_S = 0.02
"""Seconds between two looks: four times as long as a thread waits for Python's lock before it asks again."""
TASKS = Path("/proc/self/task")


@dataclass
class _Last:
    """How the last run of this process ended."""

    well: bool = True


_last = _Last()


@contextmanager
def own_variables_kept() -> Iterator[None]:
    """Leaves the variables by which processes know of each other as they were, and notes whether the run ended well."""
    _last.well = False
    with variables_kept(OF_ONE):
        yield
    _last.well = True


def leave() -> None:
    """Takes the group down in order: what it left running could abort a process that had ended well.

    After a fault the others may never come to this, for which NCCL would wait, and the group ends with the process.
    """
    from torch import distributed

    if distributed.is_initialized() and _last.well and getattr(sys, "last_value", None) is None:
        distributed.destroy_process_group()
    settle()


def settle(timeout_s: float = 5.0, name: str = THREADS) -> bool:
    """Waits until no thread of a process group is at work.

    When a result is there, gloo's thread has still to let go of its tensors, for which it needs Python's lock. Python
    ends a thread that waits for its lock while it shuts down, to which C++ says "terminate called without an active
    exception" and SIGABRT: a process that had done everything would have failed. Taking the group down is not enough,
    for its threads live as long as anything refers to it, in torch too.

    Args:
        timeout_s: How long to wait at most, in seconds.
        name: What the names of those threads begin with.

    Returns:
        Whether they were seen at rest. Where the system does not list threads (it is not Linux), a moment has to do.
    """
    until = time.monotonic() + timeout_s
    before = None
    while True:
        # Nobody holds the lock in this sleep. A thread that waits for it is woken, which counts; one at rest is not.
        time.sleep(SAMPLE_S)
        found = _switches(name)
        if found is not None and found == before and all(state == "S" for state, _ in found.values()):
            return True
        if found is None or time.monotonic() > until:
            return False
        before = found


def _switches(name: str) -> dict[str, tuple[str, int]] | None:
    """By thread: its state, and how often it has left a processor; None where threads are not listed."""
    if not TASKS.is_dir():
        return None
    found: dict[str, tuple[str, int]] = {}
    for task in TASKS.iterdir():
        with suppress(OSError):  # it has ended meanwhile
            lines = (task / "status").read_text(encoding="utf-8", errors="replace").splitlines()
            fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if fields["Name"].startswith(name):
                count = int(fields["voluntary_ctxt_switches"]) + int(fields["nonvoluntary_ctxt_switches"])
                found[task.name] = (fields["State"][:1], count)
    return found
