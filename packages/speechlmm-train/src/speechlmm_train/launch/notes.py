"""What the nodes of a job leave of how they failed, and which of them was the first."""

from __future__ import annotations

import json
import time
from pathlib import Path

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_train.launch.processes import TERMINATED


def write_note(attempt: Path, node: int, code: int, reason: str) -> None:
    """Leaves how a node failed in the folder of this attempt at the job."""
    write_text(attempt / f"node-{node}.failed", json.dumps([time.time(), code, reason]) + "\n")


def wait_for_notes(attempt: Path, *, timeout_s: float) -> None:
    """Waits until all nodes that came up have left one: when one fails, the others soon do, for want of it."""
    deadline = time.monotonic() + timeout_s
    up = len(list(attempt.glob("node-*.up")))
    while time.monotonic() < deadline and len(list(attempt.glob("node-*.failed"))) < up:
        time.sleep(0.2)


def first_failure(attempt: Path) -> tuple[int, str] | None:
    """The exit code and the reason of the node that failed first; None if none has left a note.

    A process that was killed (out of memory, say) or crashed is a failure like any other. Only one that was ended by
    SIGTERM says nothing about why: that is how the others are ended when one fails.
    """
    notes = sorted(json.loads(note.read_text(encoding="utf-8")) for note in attempt.glob("node-*.failed"))
    real = [one for one in notes if one[1] != TERMINATED] or notes
    return (int(real[0][1]), str(real[0][2])) if real else None
