"""`speechlmm-train status`."""

from __future__ import annotations

from pathlib import Path

import click

from speechlmm_train.cli.options import debug_option


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@debug_option
def status(*, folder: Path) -> int:
    """Show the states of runs and of their SLURM jobs.

    DIR is the output folder of a run, a sweep's folder (multirun/…), or a folder in which runs lie. The exit code is 1
    if one has failed.
    """
    from speechlmm_train.launch.record import SweepRecord
    from speechlmm_train.launch.status import runs_below, status_of
    from speechlmm_train.launch.table import status_table

    record = SweepRecord.read(folder)
    found = status_of(runs_below(folder))
    varied = [" ".join(run.varied) for run in record.runs if run.output_dir] if record else []
    for line in status_table(found, varied):
        click.echo(line)
    faults = [run for run in record.runs if run.fault] if record else []
    for run in faults:
        click.echo(f"{run.name}: cannot be composed: {run.fault}")
    return 1 if faults or any(one.state == "failed" for one in found) else 0
