"""`speechlmm-train inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from speechlmm_train.cli.options import debug_option


@click.command()
@click.argument("what", nargs=-1, metavar="[SPEC | MANIFEST... ] [KEY=VALUE]...")
@click.option("--num-samples", type=click.IntRange(min=1), default=3, show_default=True, help="Samples of each set.")
@click.option("--dataset", "names", multiple=True, help="Only the dataset of this name; may be given more than once.")
@click.option("--index", type=int, help="Only the example of this number, from 0, of each set.")
@click.option("--split", type=click.Choice(["train", "eval", "test", "guard"]), help="Only sets that are for this.")
@click.option("--model-path", type=click.Path(path_type=Path), help="Folder of the model that is to see the samples.")
@click.option(
    "--augment/--no-augment", default=False, help="Apply `data.augment` of the configuration to training sets."
)
@click.option("--epochs", type=click.IntRange(1, 100), default=3, show_default=True, help="Epochs of prompts.")
@click.option("--output-dir", type=click.Path(path_type=Path), default=Path("inspection"), show_default=True)
@click.option("--index-dir", type=click.Path(path_type=Path), help="What `prepare` wrote.  [default: beside the SPEC]")
@click.option("--config-name", default="pretrain", show_default=True, help="Name of the configuration to override.")
@click.option("--config-dir", type=click.Path(path_type=Path), help="Folder of your own configurations.")
@click.option("--import", "imports", type=click.Path(path_type=Path), multiple=True, help="Your own Python file.")
@debug_option
def inspect(
    *,
    what: tuple[str, ...],
    num_samples: int,
    names: tuple[str, ...],
    index: int | None,
    split: Any,
    model_path: Path | None,
    augment: bool,
    epochs: int,
    output_dir: Path,
    index_dir: Path | None,
    config_name: str,
    config_dir: Path | None,
    imports: tuple[Path, ...],
) -> int:
    """Show samples as the model will see them: text, tokens that are learnt, features, sound.

    The data are a dataset specification, manifests, or those of a run, named by the KEY=VALUEs that `run` takes. The
    model is that of --model-path, or of the KEY=VALUEs; without either, a stand-in that counts bytes.

    Prints the text, what is learnt in green, or in [[...]] where the output is no terminal. Writes index.html with
    pictures and sound, and the same as files, into --output-dir. The exit code is 1 if a sample cannot be made.
    """
    import sys

    from speechlmm_core.errors import ConfigError
    from speechlmm_train.inspection.choose import name, open_named, pick

    named = name(
        what,
        config_name=config_name,
        config_dir=config_dir,
        imports=imports,
        index_dir=index_dir,
        model_path=model_path,
    )
    if augment and (named.composed is None or not named.composed.config.data.augment):
        raise ConfigError("--augment: give what to apply as an override, data.augment=[{type: speed}]")
    chosen = open_named(named.source, names, split)
    picked = [pick(dataset, num_samples, index, seed=0) for dataset in chosen.datasets]

    from speechlmm_train.inspection.run import Inspection

    inspection = Inspection.of(chosen, picked, named.composed, model_path=model_path, augment=augment, epochs=epochs)
    for note in inspection.notes:
        click.echo(f"note: {note}", err=True)
    for line in inspection.lines(colour=sys.stdout.isatty()):
        click.echo(line)
    page = inspection.write(output_dir)
    click.echo(f"pictures and sound: {page}", err=True)
    if inspection.failed:
        click.echo(f"{inspection.failed} samples cannot be made; their lines say why", err=True)
    return 1 if inspection.failed else 0
