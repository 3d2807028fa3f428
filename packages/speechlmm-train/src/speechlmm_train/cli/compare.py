"""`speechlmm-train compare`."""

from __future__ import annotations

from pathlib import Path

import click

from speechlmm_train.cli.options import debug_option, metric_options


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@metric_options
@click.option("--common", is_flag=True, help="Compare what both have, where one has more examples.")
@click.option("--draws", type=click.IntRange(min=100), default=1000, show_default=True, help="Resamplings.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write to this file, too: .md or .json.")
@debug_option
def compare(
    *,
    a: Path,
    b: Path,
    metrics: tuple[str, ...],
    normaliser: str | None,
    worst: int,
    as_json: bool,
    common: bool,
    draws: int,
    seed: int,
    output: Path | None,
) -> None:
    """Compare two evaluations of the same examples: A and B are predictions.jsonl, or folders that hold one.

    Shows each metric of both, the difference with its interval, how likely it is by chance (paired bootstrap, and
    approximate randomisation), and the examples that changed.
    """
    from speechlmm_core.checkpoint.atomic import write_text
    from speechlmm_core.errors import ConfigError
    from speechlmm_train.evaluate.compare import compare as compared
    from speechlmm_train.evaluate.compare import summary, to_json, to_markdown
    from speechlmm_train.evaluate.metric_choice import MetricChoice
    from speechlmm_train.evaluate.prediction import read_predictions

    if output is not None and output.suffix not in (".md", ".json"):
        raise ConfigError(f"--output {str(output)!r}: expected a file that ends in .md or .json")
    choice = MetricChoice.of(metrics, normaliser)
    found = compared(read_predictions(a), read_predictions(b), choice, common=common, draws=draws, seed=seed)
    page = to_markdown(found, str(a), str(b), examples=worst)
    if output is not None:
        try:
            write_text(output, to_json(found) if output.suffix == ".json" else page)
        except OSError as exc:
            raise ConfigError(f"--output {str(output)!r} cannot be written: {exc.strerror}") from exc
    if as_json:
        click.echo(to_json(found), nl=False)
        return
    click.echo("\n".join(summary(found)))
    for change in found.changes[:worst]:
        click.echo(f"\n{change.key}  {change.metric} {change.value_a:.4g} -> {change.value_b:.4g}")
        for name, text in (("reference", change.reference), ("A", change.aligned_a), ("B", change.aligned_b)):
            click.echo(f"  {name:<10} {' '.join(text.split())}")
