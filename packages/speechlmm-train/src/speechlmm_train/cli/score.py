"""`speechlmm-train score`."""

from __future__ import annotations

from pathlib import Path

import click

from speechlmm_train.cli.options import debug_option, metric_options


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path), metavar="PREDICTIONS.JSONL")
@metric_options
@click.option("--output-dir", type=click.Path(path_type=Path), help="Folder to write report.json, .md and .html into.")
@click.option("--overwrite", is_flag=True, help="Replace reports in the output folder.")
@debug_option
def score(
    *,
    predictions: Path,
    metrics: tuple[str, ...],
    normaliser: str | None,
    worst: int,
    as_json: bool,
    output_dir: Path | None,
    overwrite: bool,
) -> int:
    """Score predictions of `evaluate` again, without the model: with other metrics, or another normaliser."""
    from speechlmm_core.errors import ConfigError
    from speechlmm_train.cli.evaluate import show
    from speechlmm_train.evaluate.markdown import signature_lines
    from speechlmm_train.evaluate.metric_choice import MetricChoice
    from speechlmm_train.evaluate.output import EvaluationFolder
    from speechlmm_train.evaluate.prediction import read_predictions
    from speechlmm_train.evaluate.report_files import write_reports
    from speechlmm_train.evaluate.score import report_on

    choice = MetricChoice.of(metrics, normaliser)
    folder = None
    if output_dir is not None:
        folder = EvaluationFolder(output_dir)
        there = [path for kind in ("json", "md", "html") if (path := output_dir / f"report.{kind}").exists()]
        if there and not overwrite:
            raise ConfigError(
                f"{str(there[0])!r} is there already; replace it with --overwrite, or choose --output-dir"
            )
        folder.make()
    rows = read_predictions(predictions)
    report = report_on(rows, choice)
    if folder is not None:
        write_reports(folder, report, rows, choice, worst=worst, title=str(predictions))
    code = show(report, as_json=as_json)
    if not as_json:
        click.echo("\n" + "\n".join(signature_lines(report)))
    if output_dir is not None:
        click.echo(f"the reports are in {output_dir}", err=True)
    return code
