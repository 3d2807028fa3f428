"""Waits for SLURM jobs, and tells what comes of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from speechlmm_core.wording import FAULT
from speechlmm_train.launch.status import Status, status_of
from speechlmm_train.launch.tail import tail
from speechlmm_train.preempted import PREEMPTED

POLL_S = 5.0
TAIL = 20


def wait_for(folders: Sequence[Path], *, poll_s: float = POLL_S) -> list[Status]:
    """Waits until all runs have ended, and tells each change of their states on standard error.

    A job that is queued again goes on being waited for; the end of this process leaves all jobs as they are.
    """
    told: dict[Path, tuple[str, str]] = {}
    while True:
        found = status_of(folders)
        open_runs = 0
        for one in found:
            if told.get(one.folder) != (one.state, one.reason):
                told[one.folder] = (one.state, one.reason)
                click.echo(line_of(one), err=True)
            # A job that was preempted and is not to run again is a failed one; otherwise SLURM has not answered.
            open_runs += one.state in ("queued", "running", "preempted")
        if not open_runs:
            return found
        time.sleep(poll_s)


def line_of(one: Status) -> str:
    """A run's state in a line."""
    job = f" (job {one.job_id})" if one.job_id else ""
    at = f" at step {one.step}" if one.step is not None and one.state != "finished" else ""
    reason = f": {one.reason}" if one.reason else ""
    return f"{one.name}{job}: {one.state}{at}{reason}"


def tell_end(one: Status) -> int:
    """Shows the end of the log of a run that failed; returns the exit code that the run stands for."""
    if one.state == "finished":
        return 0
    if one.log:
        lines = tail(Path(one.log), TAIL)
        click.echo(f"the end of {one.log}:", err=True)
        for line in lines:
            click.echo(f"  {line}", err=True)
    return one.exit_code or (PREEMPTED if one.state == "preempted" else FAULT)
