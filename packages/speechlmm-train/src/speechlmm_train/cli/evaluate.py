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
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
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
    manifests: tuple[Path, ...],
) -> None:
    """Generate from MANIFESTS, and score the answers with the metrics of their tasks."""
    if batch_size != "auto" and not batch_size.isdecimal():
        raise click.BadParameter(f"expected a number or 'auto', got {batch_size!r}", param_hint="--batch-size")

    from speechlmm_train.evaluate.manifests import evaluate_manifests

    report = evaluate_manifests(
        model_path,
        manifests,
        output_dir=output_dir,
        max_new_tokens=max_new_tokens,
        batch_size="auto" if batch_size == "auto" else int(batch_size),
        device=device,
        limit=limit,
    )
    click.echo(json.dumps(report, indent=2, ensure_ascii=False))
