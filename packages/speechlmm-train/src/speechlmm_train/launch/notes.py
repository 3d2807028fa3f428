"""What the nodes of a job leave of how they failed, and which of them was the first."""

from __future__ import annotations

import json
import time
from pathlib import Path

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_train.launch.cause import Failure, first_cause
from speechlmm_train.preempted import PREEMPTED


def write_note(attempt: Path, node: int, code: int, reason: str, *, asked: bool = False) -> None:
    """Leaves how a node failed in the folder of this attempt at the job; `asked` as in `Failure`."""
    write_text(attempt / f"node-{node}.failed", json.dumps([time.time(), code, reason, asked]) + "\n")


def wait_for_notes(attempt: Path, *, timeout_s: float) -> None:
    """Waits until all nodes that came up have left one: when one fails, the others soon do, for want of it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and _silent(attempt):
        time.sleep(0.2)


def first_failure(attempt: Path) -> tuple[int, str] | None:
    """The exit code and the reason of the node that failed first; None if none has left a note.

    A process that was killed (out of memory, say) or crashed is a failure like any other. Where all nodes were asked to
    end, and nothing else is wrong with any of them, the job was preempted. A node that came up and is silent was killed
    itself: then what the others say may all be for want of it.
    """
    notes = [json.loads(note.read_text(encoding="utf-8")) for note in attempt.glob("node-*.failed")]
    failures = {number: Failure(*one[1:]) for number, one in enumerate(sorted(notes))}
    if not failures:
        return None
    cause = failures[first_cause(failures)]
    if cause.follows and (silent := _silent(attempt)):
        return cause.code, "; ".join([f"{' and '.join(silent)} ended without a word", cause.reason])
    return (PREEMPTED, "") if cause.asked else (cause.code, cause.reason)


def _silent(attempt: Path) -> list[str]:
    """Names of the nodes that came up and have left no note."""
    names = {entry.name for entry in attempt.iterdir()} if attempt.is_dir() else set[str]()
    up = sorted(name.removesuffix(".up") for name in names if name.startswith("node-") and name.endswith(".up"))
    silent = [name for name in up if f"{name}.failed" not in names]
    return [(attempt / f"{name}.up").read_text(encoding="utf-8").strip() or name for name in silent]
