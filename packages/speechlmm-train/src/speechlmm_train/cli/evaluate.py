"""`speechlmm-train evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from speechlmm_train.cli.options import debug_option


@click.command()
@click.option("--model-path", required=True, type=click.Path(path_type=Path), help="Folder of a trained model.")
@click.option("--output-dir", type=click.Path(path_type=Path), default=Path("evaluation"), show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--batch-size", default="auto", show_default=True, help="Examples at a time, or `auto`.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
@click.option("--overwrite", is_flag=True, help="Replace an earlier evaluation in the output folder.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many examples of each manifest.")
@click.argument("manifests", nargs=-1, required=True, type=click.Path(path_type=Path))
@debug_option
def evaluate(
    *,
    model_path: Path,
    output_dir: Path,
    max_new_tokens: int,
    batch_size: str,
    device: str,
    limit: int | None,
    overwrite: bool,
    manifests: tuple[Path, ...],
) -> int:
    """Generate from MANIFESTS, and score the answers with the metrics of their tasks.

    The exit code is 1 if an example could not be answered; the others are scored all the same.
    """
    if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size)):
        raise click.BadParameter(
            f"expected a number from 1 on or 'auto', got {batch_size!r}", param_hint="--batch-size"
        )

    from speechlmm_train.evaluate.manifests import evaluate_manifests

    report = evaluate_manifests(
        model_path,
        manifests,
        output_dir=output_dir,
        max_new_tokens=max_new_tokens,
        batch_size="auto" if batch_size == "auto" else int(batch_size),
        device=device,
        limit=limit,
        overwrite=overwrite,
    )
    click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    failed = sum(one["failed"] for one in report.values())
    if failed:
        click.echo(f"{failed} examples failed; the predictions say why", err=True)
    return 1 if failed else 0
