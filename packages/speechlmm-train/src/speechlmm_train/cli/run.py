"""`speechlmm-train run`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from speechlmm_train.cli.options import run_options

if TYPE_CHECKING:
    from speechlmm_train.compose import Composed
    from speechlmm_train.launch.multirun import Options


@click.command()
@run_options
@click.option("--multirun", "-m", is_flag=True, help="Run every combination of values like key=a,b,c.")
@click.option("--dry-run", is_flag=True, help="Show what would be run, and for SLURM the batch script; start nothing.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for SLURM jobs to end.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port where several processes find each other.  [default: a free one]"
)
def run(
    *,
    overrides: tuple[str, ...],
    config_name: str,
    config_dir: Path | None,
    imports: tuple[Path, ...],
    resume: bool,
    overwrite: bool,
    progress: bool,
    multirun: bool,
    dry_run: bool,
    wait: bool,
    port: int | None,
) -> int:
    """Train a model.

    Values are set in Hydra's grammar: model/audio_encoder=tiny_whisper picks a preset, training.max_steps=100 sets a
    value, +key=value adds one, ~key removes one.

    With training.num_processes above one, or several GPUs, as many processes share the training; with
    hydra/launcher=slurm it is submitted to SLURM, on hydra.launcher.nodes=N nodes. The exit code is the training's.
    """
    from speechlmm_train.launch.multirun import Options

    debug = "--debug" in sys.argv
    options = Options(imports, resume, overwrite, progress, port, wait, debug)
    if multirun:
        from speechlmm_train.launch.multirun import list_runs, run_sweep
        from speechlmm_train.sweep import expand_sweep

        runs = expand_sweep(config_name, overrides, config_dir=config_dir, imports=imports)
        if not dry_run:
            return run_sweep(config_name, overrides, runs, options)
        lines, code = list_runs(runs, options)
        for line in lines:
            click.echo(line)
        return code
    from speechlmm_train.compose import compose_config

    composed = compose_config(config_name, overrides, config_dir=config_dir, imports=imports)
    for change in composed.changes:
        click.echo(f"{change} ({change.source})", err=True)
    return _start(composed, overrides, options, dry_run=dry_run)


def _start(composed: Composed, overrides: tuple[str, ...], options: Options, *, dry_run: bool) -> int:
    from speechlmm_train.launch.multirun import check, launcher_of, ranks_of

    launcher = launcher_of(composed)
    check(composed, launcher)
    # Whoever has started several of this command (torchrun, accelerate launch) has decided already.
    ranks = 1 if launcher is None and int(os.environ.get("WORLD_SIZE", "1")) > 1 else ranks_of(composed, launcher)
    job = options.job(composed, overrides)
    if dry_run:
        return _show(composed, options, ranks)
    if launcher is not None:
        from speechlmm_train.launch.slurm import submit
        from speechlmm_train.launch.table import shorten
        from speechlmm_train.launch.wait import line_of, tell_end, wait_for

        state = submit(job, launcher, name=composed.name, processes=ranks)
        click.echo(
            f"submitted as job {state.job_id}; `speechlmm-train status {shorten(job.output_dir)}` shows its state"
        )
        if not options.wait:
            return 0
        try:
            ended = wait_for([job.output_dir])[0]
        except KeyboardInterrupt:
            click.echo(f"the job goes on; end it with `scancel {state.job_id}`", err=True)
            raise
        if ended.state == "finished":
            click.echo(f"{line_of(ended)}; the model is in {shorten(job.output_dir / 'model')}")
        return tell_end(ended)
    if ranks > 1:
        from speechlmm_train.launch.local import run_job

        return run_job(job, processes=ranks, port=options.port, name=composed.name, debug=options.debug)
    return _here(composed, options)


def _show(composed: Composed, options: Options, ranks: int) -> int:
    """What a single run would be."""
    from speechlmm_train.launch.begun import to_do
    from speechlmm_train.launch.multirun import launcher_of
    from speechlmm_train.launch.slurm import script

    launcher = launcher_of(composed)
    nodes = launcher.nodes if launcher else 1
    where = f"SLURM, {nodes} node(s) with {ranks} process(es) each" if launcher else f"here, in {ranks} process(es)"
    click.echo(f"run:    {composed.name}")
    click.echo(f"folder: {composed.config.training.output_dir}")
    click.echo(f"where:  {where}")
    if launcher is not None:
        click.echo(f"batch script:\n{script(options.job(composed, ()), launcher, composed.name)}")
    click.echo(f"to do:  {to_do(composed, resume=options.resume, overwrite=options.overwrite)}")
    return 0


def _here(composed: Composed, options: Options) -> int:
    from speechlmm_train.launch.claim import claimed
    from speechlmm_train.trainer.output_folder import OutputFolder

    if int(os.environ.get("RANK", "0")) != 0:
        return _train(composed, options)
    folder = OutputFolder(composed.config.training.output_dir)
    folder.check(resume=options.resume, overwrite=options.overwrite)
    with claimed(folder.path.absolute(), name=composed.name):
        return _train(composed, options)


def _train(composed: Composed, options: Options) -> int:
    from speechlmm_train.process import prepare_process

    prepare_process()
    from speechlmm_train.launch.closing import closing_lines
    from speechlmm_train.run import run as train
    from speechlmm_train.trainer.notes import show_notes

    if int(os.environ.get("RANK", "0")) == 0:
        show_notes()

    report = train(
        composed.config,
        plain=composed.plain,
        resume=options.resume,
        overwrite=options.overwrite,
        progress=options.progress,
    )
    if int(os.environ.get("RANK", "0")) == 0:
        lines, notes = closing_lines(report, composed.config)
        for line in lines:
            click.echo(line)
        for note in notes:
            click.echo(f"note: {note}", err=True)
    return 0
