"""`speechlmm-train average-checkpoints`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from speechlmm_train.cli.options import debug_option


@click.command("average-checkpoints")
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CHECKPOINT...")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder for the mean.")
@click.option("--last", type=click.IntRange(min=2), help="Take so many last checkpoints of the run in CHECKPOINT.")
@click.option("--weights", help="How much each checkpoint counts, as 1,2,3.  [default: all alike]")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint in the output folder.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
@debug_option
def average_checkpoints(
    *,
    checkpoints: tuple[Path, ...],
    output: Path,
    last: int | None,
    weights: str | None,
    overwrite: bool,
    progress: bool,
) -> None:
    """Write the mean of several checkpoints' weights.

    The checkpoints are of one model: what is configured, and each tensor's name, shape and type, has to be the same.
    """
    from tqdm import tqdm

    from speechlmm_train.average import average_checkpoints as average
    from speechlmm_train.average import find_checkpoints, total_bytes
    from speechlmm_train.folders import check_new_checkpoint

    shares = None
    if weights is not None:
        try:
            shares = [float(one) for one in weights.split(",")]
        except ValueError as exc:
            raise click.BadParameter(f"expected numbers as 1,2,3, got {weights!r}", param_hint="--weights") from exc
    folders = find_checkpoints(checkpoints, last)
    check_new_checkpoint(output, "--output", overwrite=overwrite)
    shown = progress and sys.stderr.isatty()
    with tqdm(total=total_bytes(folders[0]), unit="B", unit_scale=True, disable=not shown) as bar:
        done = average(folders, output, weights=shares, tick=bar.update)
    for folder, share in zip(done.checkpoints, done.weights, strict=True):
        click.echo(f"{share:7.2%}  {folder}")
    click.echo(f"the mean of {len(done.checkpoints)} checkpoints ({done.tensors} tensors) is in {output}")
