"""`speechlmm-train merge-lora`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import click

from speechlmm_train.cli.options import debug_option

DTYPES = ("auto", "float32", "bfloat16", "float16")


@click.command("merge-lora")
@click.argument("model_path", type=str)
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Type of the saved weights."
)
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint in the output folder.")
@debug_option
def merge_lora(*, model_path: str, output: Path, dtype: str, overwrite: bool) -> None:
    """Write the model in MODEL_PATH with its adapters merged into its weights, as a plain checkpoint in OUTPUT.

    Every weight is written, those of base checkpoints too, so that nothing else is needed to load it.
    """
    from speechlmm_train.folders import check_new_checkpoint

    check_new_checkpoint(output, "OUTPUT", overwrite=overwrite)
    from speechlmm_train.merge_lora import merge_lora as merge

    done = merge(model_path, output, dtype=cast("Literal['auto', 'float32', 'bfloat16', 'float16']", dtype))
    click.echo(f"merged {', '.join(done.adapters)}; the plain model ({done.dtype}) is in {output}")
