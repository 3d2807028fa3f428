"""The runs of a sweep, one after another on this machine or each as a SLURM job."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from speechlmm_core.errors import ConfigError, SpeechLMMError
from speechlmm_core.wording import FAULT, INTERRUPTED, OK, USAGE, word
from speechlmm_train.compose import Composed
from speechlmm_train.launch.begun import check_resumes, check_writable, folder_of, refuse_other_job, resumes
from speechlmm_train.launch.cause import TERMINATED
from speechlmm_train.launch.gpus import num_processes
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.local import run_job
from speechlmm_train.launch.record import SweepRecord
from speechlmm_train.launch.shares import check_shares
from speechlmm_train.launch.slurm import check_slurm, script, submit
from speechlmm_train.launch.status import Status, refuse_active, status_of
from speechlmm_train.launch.table import filled, shorten, status_table
from speechlmm_train.launch.wait import tell_end, wait_for
from speechlmm_train.preempted import PREEMPTED
from speechlmm_train.slurm_config import SlurmLauncherConfig, slurm_config
from speechlmm_train.sweep import SweepRun

_ASKED_TO_STOP = (INTERRUPTED, TERMINATED, PREEMPTED)


@dataclass(frozen=True)
class Options:
    """What all runs of a command have in common."""

    imports: tuple[Path, ...] = ()
    resume: bool = False
    overwrite: bool = False
    progress: bool = True
    port: int | None = None
    wait: bool = True
    debug: bool = False
    base: Path = field(default_factory=Path.cwd)

    def job(self, composed: Composed, overrides: Sequence[str], *, resume: bool | None = None) -> Job:
        """A composed run as a job."""
        imports = tuple(str(path.absolute()) for path in self.imports)
        resume = self.resume if resume is None else resume
        return Job(composed.plain, str(self.base), imports, resume, self.overwrite, self.progress, tuple(overrides))


def launcher_of(composed: Composed) -> SlurmLauncherConfig | None:
    """How a run is to be submitted; None to do it here.

    Raises:
        ConfigError: `hydra.launcher` is wrong.
    """
    return slurm_config(composed.launcher) if composed.launcher is not None else None


def ranks_of(composed: Composed, launcher: SlurmLauncherConfig | None) -> int:
    """Processes of a run on each node."""
    asked = composed.config.training.num_processes
    if launcher is None:
        return num_processes(asked)
    return launcher.processes if asked == "auto" else asked


def check(composed: Composed, launcher: SlurmLauncherConfig | None) -> None:
    """Checks that a run's processes can share it.

    Raises:
        ConfigError: They cannot.
    """
    nodes = launcher.nodes if launcher else 1
    # Whoever has started several of this command (torchrun, accelerate launch) has decided how many.
    started = int(os.environ.get("WORLD_SIZE", "1")) if launcher is None else 1
    check_shares(composed.config, processes=started if started > 1 else ranks_of(composed, launcher), nodes=nodes)


def list_runs(runs: Sequence[SweepRun], options: Options) -> tuple[list[str], int]:
    """The runs of a sweep with what would be done about each, and the batch script of the first that SLURM would do.

    Returns:
        The lines, and the exit code: 2 if one cannot be run.
    """
    rows: list[tuple[str, ...]] = []
    shown: list[str] = []
    faults = _faults(runs)
    for run in runs:
        if run.composed is None:
            rows.append((str(run.number), run.name, " ".join(run.varied), "cannot be composed", ""))
            continue
        launcher = launcher_of(run.composed)
        if launcher and not shown:
            name = run.composed.name
            shown = ["", f"batch script of {name}:", script(options.job(run.composed, run.overrides), launcher, name)]
        folder = folder_of(run.composed)
        try:
            going_on = resumes(run.composed, resume=options.resume, overwrite=options.overwrite)
            what = {None: "finished", True: "resume", False: "start"}[going_on]
            if going_on is not None:
                active = _look(run.composed, launcher, going_on=going_on)
                what = active.state if active is not None else what
        except (SpeechLMMError, OSError) as exc:
            what = "cannot be run"
            faults += [f"{run.composed.name}: {line}" for line in word(exc)[0]]
        rows.append((str(run.number), run.composed.name, " ".join(run.varied), what, shorten(folder)))
    lines = filled(("#", "run", "what varies", "to do", "folder"), rows)
    changes = _changes([run.composed for run in runs if run.composed])
    lines += [*(["", *changes] if changes else []), *faults, *shown]
    return lines, USAGE if faults else OK


def run_sweep(config_name: str, overrides: Sequence[str], runs: Sequence[SweepRun], options: Options) -> int:
    """Does every run of a sweep that has not been done; one that fails doesn't stop the others.

    Returns:
        0 if all are finished (or submitted, if they are not to be waited for), 1 if one failed; 130, 143 or 75 if the
        sweep was asked to stop.

    Raises:
        ConfigError: No run can be composed, or a launcher is wrong.
    """
    composed = [(run, run.composed) for run in runs if run.composed is not None]
    if not composed:
        raise ConfigError("\n".join(dict.fromkeys(line for run in runs for line in (run.fault or "").splitlines())))
    launchers = {run.number: launcher_of(one) for run, one in composed}
    if any(launchers.values()):
        check_slurm()
    _keep(SweepRecord.of(config_name, overrides, runs))
    for line in _faults(runs):
        click.echo(f"error: {line}" if line else "", err=True)
    reasons: dict[Path, str] = {}
    stopped = 0
    submitted: list[Path] = []
    for place, (run, one) in enumerate(composed):
        output_dir = folder_of(one)
        launcher = launchers[run.number]
        at = f"[{place + 1}/{len(composed)}] {one.name}"
        try:
            if (resume := resumes(one, resume=options.resume, overwrite=options.overwrite)) is None:
                click.echo(f"{at}: finished before, skipped", err=True)
                continue
            click.echo(f"{at}: {' '.join(run.varied)}".rstrip(": "), err=True)
            if (active := _look(one, launcher, going_on=resume)) is not None:
                click.echo(f"job {active.job_id} does this run already ({active.state})", err=True)
                submitted.append(output_dir)
                continue
            job = options.job(one, run.overrides, resume=resume)
            if launcher is not None:
                state = submit(job, launcher, name=one.name, processes=ranks_of(one, launcher))
                click.echo(f"submitted as job {state.job_id}", err=True)
                submitted.append(output_dir)
                continue
            ranks = ranks_of(one, None)
            code = run_job(job, processes=ranks, port=options.port, name=one.name, debug=options.debug)
            if code in _ASKED_TO_STOP:
                stopped = code
                break
        except (SpeechLMMError, OSError) as exc:
            reasons[output_dir] = "; ".join(word(exc)[0])
            click.echo(f"error: {one.name}: {reasons[output_dir]}", err=True)
    if submitted and options.wait and not stopped:
        for status in wait_for(submitted):
            tell_end(status)
    return _conclude(runs, reasons, stopped, waited=options.wait or not submitted)


def _look(composed: Composed, launcher: SlurmLauncherConfig | None, *, going_on: bool) -> Status | None:
    """Checks that a run can be done; gives the job that does it already, if there is one.

    Raises:
        SpeechLMMError: It cannot be done as it is asked for.
        OSError: Its folder cannot be looked into.
    """
    check(composed, launcher)
    check_writable(composed)
    folder = folder_of(composed)
    if launcher is not None and (active := _active(folder)) is not None:
        refuse_other_job(composed, str(active.job_id))
        return active
    refuse_active(folder)
    if going_on:
        check_resumes(composed)
    return None


def _keep(record: SweepRecord) -> None:
    """Writes the record of a sweep; that it cannot be written stops no run."""
    folder = record.folder()
    told = f"{len(record.runs)} runs"
    try:
        record.write(folder)
        told += f"; `speechlmm-train status {shorten(folder)}` shows their states"
    except OSError as exc:
        told += f"; the record of the sweep cannot be written to {shorten(folder)}: {exc.strerror}"
    click.echo(told, err=True)


def _conclude(runs: Sequence[SweepRun], reasons: dict[Path, str], stopped: int, *, waited: bool) -> int:
    """Shows the table, and returns the exit code."""
    folders = [folder_of(run.composed) if run.composed else None for run in runs]
    known = {one.folder: one for one in status_of([folder for folder in folders if folder])}
    found: list[Status] = []
    for run, folder in zip(runs, folders, strict=True):
        if folder is None:
            found.append(
                Status(Path(), "failed", run.name, exit_code=USAGE, reason="; ".join((run.fault or "").splitlines()))
            )
        elif folder in reasons:
            found.append(Status(folder, "failed", known[folder].name, exit_code=USAGE, reason=reasons[folder]))
        else:
            found.append(known[folder])
    for line in status_table(found, [" ".join(run.varied) for run in runs]):
        click.echo(line)
    if stopped:
        return stopped
    wanted = ("finished",) if waited else ("finished", "queued", "running")
    return 0 if all(one.state in wanted for one in found) else FAULT


def _active(output_dir: Path) -> Status | None:
    one = status_of([output_dir])[0]
    return one if one.job_id is not None and one.state in ("queued", "running") else None


def _changes(runs: Sequence[Composed]) -> list[str]:
    """What was changed or filled in without being asked for, each with the runs that it was in."""
    where: dict[str, list[str]] = {}
    for run in runs:
        for change in run.changes:
            where.setdefault(f"{change} ({change.source})", []).append(run.name)
    few = 3
    return [
        f"{text}: {', '.join(names) if len(names) <= few else f'{len(names)} of {len(runs)} runs'}"
        for text, names in where.items()
    ]


def _faults(runs: Sequence[SweepRun]) -> list[str]:
    return [f"{run.name}: {line}" for run in runs if run.fault for line in run.fault.splitlines()]
