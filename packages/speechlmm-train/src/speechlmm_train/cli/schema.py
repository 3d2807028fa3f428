"""`speechlmm-train schema`."""

from __future__ import annotations

from pathlib import Path

import click

from speechlmm_train.cli.options import debug_option


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.  [default: .schemas/<section>.json]",
)
@click.option(
    "--section",
    type=click.Choice(["run", "model", "data"]),
    default="run",
    show_default=True,
    help="What the files to check hold: all of a run's configuration, a model's alone, or a dataset specification.",
)
@debug_option
def schema(*, output: Path | None, section: str) -> None:
    """Write the JSON schema of a run's configuration, or of a dataset specification.

    An editor with a YAML language server completes and checks a file that begins with
    `# yaml-language-server: $schema=.schemas/run.json`.
    """
    from speechlmm_core.config import ModelConfig
    from speechlmm_core.data.spec.schema import SpecFile
    from speechlmm_core.errors import ConfigError
    from speechlmm_core.schema import write_schema
    from speechlmm_train.run_file import RunFile

    output = output or Path(f".schemas/{section}.json")
    root = {"run": RunFile, "model": ModelConfig, "data": SpecFile}[section]
    try:
        click.echo(f"wrote {write_schema(output, root)}")
    except OSError as exc:
        raise ConfigError(f"--output {str(output)!r} cannot be written: {exc.strerror}") from exc
