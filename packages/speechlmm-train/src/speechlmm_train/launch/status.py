"""How runs are doing: what they wrote of themselves, and what SLURM says of their jobs."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechlmm_core.errors import ConfigError
from speechlmm_train.launch.notes import first_failure
from speechlmm_train.launch.state import STATE, State, slurm_job
from speechlmm_train.launch.tail import tail
from speechlmm_train.preempted import PREEMPTED
from speechlmm_train.trainer.output_folder import CONFIG, LAUNCH, METRICS, REPORT, OutputFolder

_SHOWN = ("train/loss", "train/lm")
_NOT_BEGUN_S = 120
"""How long a job may be unknown to SLURM before that means something: it has just been submitted or queued again."""
_DEPTH = 4
"""How far below a folder runs are looked for; by default they lie in `runs/<project>/<run>`."""
_SILENT_S = 300
"""How long a run on another machine may give no sign of life before it is taken to have ended."""


@dataclass(frozen=True)
class Status:
    """How a run is doing."""

    folder: Path
    state: str
    """`queued`, `running`, `finished`, `failed`, `preempted`; `begun` where nothing was left that tells more, and
    `not begun`."""
    name: str = ""
    job_id: str | None = None
    step: int | None = None
    """Optimiser steps that have been logged."""
    figures: str = ""
    """Its last figures."""
    exit_code: int | None = None
    reason: str = ""
    log: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it without being started again."""
        return self.state in ("finished", "failed")


def status_of(folders: Sequence[Path]) -> list[Status]:
    """The states of runs by their output folders; SLURM is asked once for all."""
    states = {folder: State.read(folder) for folder in folders}
    jobs = [state.job_id for state in states.values() if state and state.job_id and state.state != "finished"]
    queue = ask_queue(jobs)
    return [_status_or_fault(folder, state, queue) for folder, state in states.items()]


def refuse_active(folder: Path) -> None:
    """Checks that no other process trains in an output folder, and none waits to.

    Raises:
        ConfigError: One does.
    """
    one = status_of([folder])[0]
    # Where SLURM is and does not answer, one that was asked to stop may well run again.
    unsure = one.state == "preempted" and one.job_id is not None and shutil.which("squeue") is not None
    if one.state not in ("queued", "running") and not unsure:
        return
    if one.job_id is not None:
        raise ConfigError(
            f"the run in {str(folder)!r} is {one.state} as SLURM job {one.job_id}; wait for it, or end it with "
            f"`scancel {one.job_id}`"
        )
    state = State.read(folder)
    host, pid = (state.host, state.pid) if state else (None, None)
    doing = "running" if one.state == "running" else "being submitted"
    raise ConfigError(
        f"the run in {str(folder)!r} is {doing} on {host}, as process {pid}; wait for it, or end it with `kill {pid}` "
        "there"
    )


def ask_queue(jobs: Sequence[str]) -> dict[str, tuple[str, str]] | None:
    """SLURM's states of jobs that it has not done with, with its reasons; None where there is no SLURM to be asked."""
    if not jobs:
        return {}
    if shutil.which("squeue") is None:
        return None
    found: dict[str, tuple[str, str]] = {}
    # One that SLURM has forgotten is an error if it is the only one asked for.
    command = ["squeue", "--noheader", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(jobs)}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    if asked.returncode != 0 and "Invalid job id" not in asked.stderr:
        return None
    for line in asked.stdout.splitlines():
        job, state, reason = line.split("|", 2)
        found[job] = (state, reason)
    return found


_QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}


def _status_or_fault(folder: Path, state: State | None, queue: Mapping[str, tuple[str, str]] | None) -> Status:
    try:
        return _status(folder, state, queue)
    except OSError as exc:  # a name too long for the file system, or a folder that may not be read
        return Status(folder, "not begun", folder.name, reason=exc.strerror or str(exc))


def _status(folder: Path, state: State | None, queue: Mapping[str, tuple[str, str]] | None) -> Status:
    step, figures = last_figures(folder)
    report = OutputFolder(folder).report()
    name = state.name if state and state.name else folder.name
    if state is None:
        if report is not None:
            return Status(folder, "finished", name, step=int(report["steps"]), figures=figures)
        there = (folder / CONFIG).exists() or step is not None
        return Status(folder, "begun" if there else "not begun", name, step=step, figures=figures)
    found, reason = str(state.state), state.reason
    if state.job_id is not None and found != "finished":
        found, reason = _slurm_state(state, queue)
    elif found == "queued" and not _alive(folder, state):
        found, reason = "failed", "it was about to be submitted when that was ended; squeue shows whether it was"
    elif found == "running" and not _alive(folder, state):
        if report is not None and (folder / REPORT).stat().st_mtime >= (state.started or 0):
            found = "finished"
        else:
            found, reason = "failed", "it ended without a word: killed, or the machine went down"
    code = state.exit_code
    if found == "failed" and state.state == "running" and (note := _first_note(state)) is not None:
        code, reason = note
    if found == "finished" and report is None:
        found, reason = "failed", reason or "it ended without a model"
    log = state.log if state.log and Path(state.log).exists() else None
    if log is None and state.job_id is not None:
        logs = sorted((folder / LAUNCH).glob(f"submitit/{state.job_id}_*_log.err"))
        log = str(logs[0]) if logs else None
    if found not in ("failed", "preempted") or (found == "failed" and code == PREEMPTED):
        code = None  # not that of how it ended
    return Status(folder, found, name, state.job_id, step, figures, code, reason, log)


def _first_note(state: State) -> tuple[int, str] | None:
    """What the node that failed first left, where the one that keeps the state was ended before it could say so."""
    note = first_failure(Path(state.log).parent) if state.log else None
    return None if note is None or note[0] == PREEMPTED else note


def _slurm_state(state: State, queue: Mapping[str, tuple[str, str]] | None) -> tuple[str, str]:
    """What a run and SLURM say together."""
    assert state.job_id is not None
    own = (str(state.state), state.reason)
    if queue is None:  # off the cluster: what the run wrote last is all there is
        return own
    if state.job_id not in queue:
        return _forgotten(state)
    said, reason = queue[state.job_id]
    if said in _QUEUED:
        again = "queued again" if state.restarts or state.state in ("running", "preempted") else ""
        return "queued", "; ".join(part for part in (again, reason) if part not in ("", "None"))
    if said in _RUNNING:  # until SLURM has done with it, it may be queued again, whatever the run itself has said
        words = {"queued": ("queued", "starting"), "running": own}
        return words.get(state.state, ("running", "; ".join(part for part in ("ending", state.reason) if part)))
    return own if state.state == "failed" else ("failed", f"SLURM: {said.lower().replace('_', ' ')}")


def _forgotten(state: State) -> tuple[str, str]:
    """What has become of a job that SLURM does not know of."""
    if state.state == "preempted":  # one that is to run again, it would know
        return "failed", "cancelled, or not queued again, after it was asked to stop; --resume goes on"
    recent = time.time() - (state.ended or state.started or state.submitted or 0) < _NOT_BEGUN_S
    if state.state == "failed" or recent:
        return str(state.state), state.reason
    return "failed", "SLURM knows nothing of the job any more, and it ended without a word"


def _alive(folder: Path, state: State) -> bool:
    """Whether the process that watches over a run is there; on another machine, whether it has touched its state."""
    if state.host != socket.gethostname() or state.pid is None:
        job, here = (state.within or "").partition("/"), (slurm_job() or "").partition("/")
        if job[0] and job[0] == here[0] and job != here:
            return False  # this is the same job, queued again
        try:
            return time.time() - (folder / LAUNCH / STATE).stat().st_mtime < _SILENT_S
        except FileNotFoundError:
            return False
    import psutil

    try:
        process = psutil.Process(state.pid)
        # One that began later is another one, which was given its number.
        same = process.create_time() <= (state.started or state.submitted or time.time())
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def last_figures(folder: Path) -> tuple[int | None, str]:
    """The last step that was logged, and its losses and the last scores in words."""
    step: int | None = None
    shown: dict[str, float] = {}
    for line in tail(folder / METRICS, 200):
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # the first one may be cut off
        if not isinstance(row, dict) or "step" not in row:
            continue
        step = int(row["step"])
        scores = {key: value for key, value in row.items() if re.fullmatch(r"eval/[^/]+_(wer|cer|bleu|chrf)", key)}
        for key, value in {**{key: row[key] for key in _SHOWN if key in row}, **scores}.items():
            if isinstance(value, int | float):
                shown[key] = value
    names = [key for key in ("train/loss",) if key in shown] or [key for key in _SHOWN if key in shown]
    names += [key for key in shown if key.startswith("eval/")]
    return step, ", ".join(f"{key.partition('/')[2]} {shown[key]:.4g}" for key in names)


def runs_below(folder: Path) -> list[Path]:
    """The run in a folder, those of the sweep that it holds the record of, or those that lie in it at any depth to 4.

    Raises:
        ConfigError: There is none.
    """
    from speechlmm_train.launch.record import SweepRecord

    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is not a folder")
    if (record := SweepRecord.read(folder)) is not None:
        return [Path(run.output_dir) for run in record.runs if run.output_dir]
    if _is_run(folder):
        return [folder]
    if not (found := list(_runs_in(folder, _DEPTH))):
        raise ConfigError(
            f"there is no run in {str(folder)!r}, down to {_DEPTH} folders below; give the output folder of a run or "
            "of a sweep"
        )
    return found


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    """Runs in a folder and those below; what lies in a run is not looked into."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir())
    except PermissionError:
        return
    for entry in entries:
        if _is_run(entry):
            yield entry
        elif depth > 1:
            yield from _runs_in(entry, depth - 1)


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CONFIG, METRICS, LAUNCH))
