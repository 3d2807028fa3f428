"""`speechlmm-train schema`."""

from __future__ import annotations

from pathlib import Path

import click

from speechlmm_train.cli.options import debug_option


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(".schemas/run.json"),
    show_default=True,
    help="File to write.",
)
@debug_option
def schema(output: Path) -> None:
    """Write the JSON schema of a run's configuration.

    An editor with a YAML language server completes and checks a file that begins with
    `# yaml-language-server: $schema=.schemas/run.json`.
    """
    from speechlmm_core.schema import write_schema
    from speechlmm_train.config import RunConfig

    click.echo(f"wrote {write_schema(output, RunConfig)}")
