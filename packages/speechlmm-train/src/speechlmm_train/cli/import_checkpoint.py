"""`speechlmm-train import-checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from speechlmm_train.cli.options import debug_option


@click.command("import-checkpoint")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--allow-partial", is_flag=True, help="Take over what has a place here, and leave the rest.")
@click.option(
    "--save",
    type=click.Choice(["full", "trainable"]),
    default="full",
    show_default=True,
    help="Write every weight, or those taken over and references to the base checkpoints.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Type of the weights; auto for that of FIRST.",
)
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint in OUTPUT.")
@click.option("--config-dir", type=click.Path(path_type=Path), help="Folder of your own configurations.")
@click.option("--import", "imports", type=click.Path(path_type=Path), multiple=True, help="Your own Python file.")
@debug_option
def import_checkpoint(
    *,
    first: Path,
    output: Path,
    overrides: tuple[str, ...],
    allow_partial: bool,
    save: Literal["full", "trainable"],
    dtype: str,
    overwrite: bool,
    config_dir: Path | None,
    imports: tuple[Path, ...],
) -> None:
    """Take over a checkpoint of the first SpeechLMM (FIRST) as one of this (OUTPUT).

    The model is the one that its config.json describes. A component can be given as KEY=VALUE, such as
    model/text_decoder=llama_3_8b or model.audio_encoder.pretrained=/path/to/seamless.
    """
    from speechlmm_train.folders import check_new_checkpoint
    from speechlmm_train.import_checkpoint.importing import import_checkpoint as take_over
    from speechlmm_train.import_checkpoint.importing import plan_import

    check_new_checkpoint(output, "OUTPUT", overwrite=overwrite)
    plan = plan_import(first, overrides, config_dir=config_dir, imports=imports)
    take_over(first, output, plan, allow_partial=allow_partial, save=save, dtype=dtype, show=click.echo)
    click.echo(f"the checkpoint is in {output}; use it as training.pretrained_checkpoint={output}")
