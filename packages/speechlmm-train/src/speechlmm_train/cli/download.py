"""`speechlmm-train download`."""

from __future__ import annotations

from pathlib import Path

import click

from speechlmm_train.cli.options import debug_option


@click.command()
@click.argument("components", nargs=-1, required=True, metavar="MODEL/<PART>=<PRESET>...")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for checkpoints.  [default: $PRETRAINED_COMPONENTS]",
)
@click.option("--config-dir", type=click.Path(path_type=Path), help="Folder of your own configurations.")
@click.option(
    "--import",
    "imports",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Python file that registers components.",
)
@click.option("--progress/--no-progress", default=True, help="Show progress bars.")
@debug_option
def download(
    *,
    components: tuple[str, ...],
    into: Path | None,
    config_dir: Path | None,
    imports: tuple[Path, ...],
    progress: bool,
) -> None:
    """Fetch the base checkpoints of components, and of each only what the component needs.

    For example: model/audio_encoder=whisper model/text_decoder=llama_3_1b. An encoder is saved without its decoder.
    What was interrupted goes on where it stopped.
    """
    import os

    from speechlmm_core.checkpoint.source import ROOT_VARIABLE
    from speechlmm_core.errors import ConfigError
    from speechlmm_train.download.wanted import wanted_checkpoints

    known = os.environ.get(ROOT_VARIABLE)
    wanted, without = wanted_checkpoints(components, config_dir=config_dir, imports=imports)
    if into is None and not known:
        raise ConfigError(f"where to? set ${ROOT_VARIABLE} to a folder for checkpoints, or give one with --into")
    root = (into or Path(known or "")).expanduser()

    from speechlmm_train.download.download import check_given
    from speechlmm_train.download.download import download as fetch

    for part in without:
        click.echo(f"model.{part}: has no base checkpoint, nothing to fetch")
    for one in wanted:
        if Path(one.name).expanduser().exists():
            check_given(Path(one.name).expanduser())
            click.echo(f"{one.name}: is here already, nothing to fetch")
        else:
            fetch(one, root, click.echo, progress=progress)
    if wanted and (not known or Path(known).expanduser().resolve() != root.resolve()):
        click.echo(f"to find them: export {ROOT_VARIABLE}={root.resolve()}")
