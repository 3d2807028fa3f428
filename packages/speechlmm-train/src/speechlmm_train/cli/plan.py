"""`speechlmm-train plan`."""

from __future__ import annotations

from pathlib import Path

import click

from speechlmm_train.cli.options import run_options


@click.command()
@click.option("--gpu-memory", type=click.FloatRange(min=0, min_open=True), help="GiB of a GPU, to say what fits.")
@run_options
def plan(
    *,
    overrides: tuple[str, ...],
    config_name: str,
    config_dir: Path | None,
    imports: tuple[Path, ...],
    resume: bool,
    overwrite: bool,
    progress: bool,
    gpu_memory: float | None,
) -> None:
    """Check what `run` would train, with the same arguments, and show the model and its data; no weight is loaded.

    Data that are there are opened as `run` opens them, headers of media included: what is wrong with them is told, and
    the exit code is 2. Data that are not there are only named.
    """
    from speechlmm_core.errors import ConfigError
    from speechlmm_train.compose import compose_config, to_yaml, trace
    from speechlmm_train.composing.changes import change_lines

    composed = compose_config(config_name, overrides, config_dir=config_dir, imports=imports)
    changes = list(change_lines(trace(config_name, overrides, config_dir=config_dir)))

    from speechlmm_train.launch.multirun import check, launcher_of, ranks_of

    launcher = launcher_of(composed)
    check(composed, launcher)
    from speechlmm_train.plan_table import (
        component_table,
        coverage_lines,
        mixture_lines,
        open_plan_data,
        processes_of,
        stage_lines,
    )
    from speechlmm_train.preflight.table import memory_lines
    from speechlmm_train.trainer.output_folder import OutputFolder

    folder = OutputFolder(composed.config.training.output_dir)
    occupied = None
    try:
        folder.check(resume=resume, overwrite=overwrite)
    except ConfigError as exc:
        if resume or overwrite:
            raise
        occupied = exc  # one may want to see the plan of what is being trained
    if resume:
        folder.check_same(composed.plain)
    click.echo(to_yaml({key: value for key, value in composed.plain.items() if value}))
    click.echo(f"run {composed.name}")
    for line in changes:
        click.echo(f"  {line}")
    click.echo("")
    # Made before it is printed, so that a plan is shown whole or not at all.
    lines = [*coverage_lines(composed.config), *component_table(composed.config), "", *stage_lines(composed.config)]
    config = composed.config
    world_size = ranks_of(composed, launcher) * launcher.nodes if launcher else processes_of(config)
    data = open_plan_data(composed.config, Path.cwd(), world_size=world_size)
    mixture = list(mixture_lines(composed.config, Path.cwd(), data))
    memory = list(memory_lines(composed.config, data.stages, world_size=world_size, gpu_memory=gpu_memory))
    for line in [*lines, *(["", *mixture] if mixture else []), "", *memory]:
        click.echo(line)
    if occupied is not None:
        click.echo(f"note: {occupied}", err=True)
