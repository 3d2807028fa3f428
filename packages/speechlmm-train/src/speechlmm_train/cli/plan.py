"""`speechlmm-train plan`."""

from __future__ import annotations

from pathlib import Path

import click

from speechlmm_train.cli.options import compose_options


@click.command()
@compose_options
def plan(overrides: tuple[str, ...], config_name: str, config_dir: Path | None, imports: tuple[Path, ...]) -> None:
    """Check what `run` would train, with the same arguments, and show the model; no weight is loaded."""
    from speechlmm_train.compose import compose_config, to_yaml

    composed = compose_config(config_name, overrides, config_dir=config_dir, imports=imports)
    click.echo(to_yaml({key: value for key, value in composed.plain.items() if value}))

    from speechlmm_train.plan_table import component_table, stage_lines

    for line in component_table(composed.config):
        click.echo(line)
    click.echo()
    for line in stage_lines(composed.config):
        click.echo(line)
