"""`speechlmm-train evaluate`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from speechlmm_train.cli.options import debug_option, metric_options

_OVERRIDE = re.compile(r"[+~]{0,2}[\w./@:-]+=|~[\w./@:-]+$")


@click.command()
@click.option("--model-path", required=True, type=click.Path(path_type=Path), help="Folder of a trained model.")
@click.option("--dataset-config", help="Dataset specification: a path, or a name below conf/datasets.")
@click.option(
    "--split",
    type=click.Choice(["train", "eval", "test", "guard"]),
    help="What of a specification is evaluated on.  [default: test, or eval where there is no test set]",
)
@click.option("--dataset", "names", multiple=True, help="Only the dataset of this name; may be given more than once.")
@click.option("--output-dir", type=click.Path(path_type=Path), default=Path("evaluation"), show_default=True)
@metric_options
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--num-beams", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--batch-size", default="auto", show_default=True, help="Examples at a time, or `auto`.")
@click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …; all: spread over all GPUs."
)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto")
@click.option("--resume", is_flag=True, help="Go on with what an interrupted evaluation left in the output folder.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier evaluation in the output folder.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many examples of each dataset.")
@click.option("--config-name", default="pretrain", show_default=True, help="Name of the configuration to override.")
@click.option("--config-dir", type=click.Path(path_type=Path), help="Folder of your own configurations.")
@click.option("--import", "imports", type=click.Path(path_type=Path), multiple=True, help="Your own Python file.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
@click.argument("what", nargs=-1, metavar="[MANIFEST | KEY=VALUE]...")
@debug_option
def evaluate(
    *,
    model_path: Path,
    dataset_config: str | None,
    split: Any,
    names: tuple[str, ...],
    output_dir: Path,
    metrics: tuple[str, ...],
    normaliser: str | None,
    worst: int,
    as_json: bool,
    max_new_tokens: int,
    num_beams: int,
    batch_size: str,
    device: str,
    dtype: str,
    resume: bool,
    overwrite: bool,
    limit: int | None,
    config_name: str,
    config_dir: Path | None,
    imports: tuple[Path, ...],
    progress: bool,
    what: tuple[str, ...],
) -> int:
    """Generate answers, and score them with the metrics of their tasks.

    The data are MANIFESTs (JSONL), a specification (--dataset-config), or those of a run, named by the KEY=VALUEs
    that `run` takes. Writes predictions.jsonl, report.json, report.md and report.html into --output-dir.

    The exit code is 1 if an example could not be answered; the others are scored all the same.
    """
    from speechlmm_core.errors import ConfigError

    if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size)):
        raise click.BadParameter(
            f"expected a number from 1 on or 'auto', got {batch_size!r}", param_hint="--batch-size"
        )
    overrides = [one for one in what if _is_override(one)]
    manifests = [Path(one) for one in what if one not in overrides]
    given = [bool(overrides), bool(manifests), dataset_config is not None]
    if sum(given) != 1:
        raise ConfigError(
            "expected what to evaluate on in one way: manifests, --dataset-config, or the KEY=VALUEs of a run; got "
            + (
                " and ".join(
                    n for n, g in zip(("KEY=VALUEs", "manifests", "--dataset-config"), given, strict=True) if g
                )
                or "none"
            )
        )
    if manifests and split:
        raise ConfigError(
            "--split chooses among the datasets of a specification; manifests are evaluated on as a whole"
        )

    from speechlmm_train.compose import import_file
    from speechlmm_train.evaluate.data import of_manifests, of_run, of_specification
    from speechlmm_train.evaluate.metric_choice import MetricChoice

    if overrides:
        source = of_run(config_name, overrides, config_dir=config_dir, imports=imports)
    else:
        for path in imports:
            import_file(path)
        source = of_manifests(manifests) if manifests else of_specification(dataset_config or "", config_dir=config_dir)
    choice = MetricChoice.of(metrics, normaliser)

    from speechlmm_core.inference.options import GenerationOptions
    from speechlmm_train.evaluate.run import EvaluationRun, evaluate_datasets

    report = evaluate_datasets(
        EvaluationRun(
            model_path,
            output_dir,
            options=GenerationOptions(max_new_tokens=max_new_tokens, num_beams=num_beams),
            choice=choice,
            batch_size="auto" if batch_size == "auto" else int(batch_size),
            device=device,
            dtype=dtype,
            limit=limit,
            worst=worst,
            resume=resume,
            overwrite=overwrite,
            progress=progress and sys.stderr.isatty(),
        ),
        lambda: source.open(split, names),
    )
    code = show(report, as_json=as_json)
    click.echo(f"the reports are in {output_dir}", err=True)
    return code


def _is_override(one: str) -> bool:
    """Whether an argument is a KEY=VALUE and no manifest, which may hold a `=` and may be missing."""
    if not _OVERRIDE.match(one) or Path(one).exists():
        return False
    section = re.split(r"[./@=]", one.lstrip("+~"), maxsplit=1)[0]
    if not one.endswith(".jsonl"):
        return bool(section)
    from speechlmm_train.config import RunConfig

    return section in RunConfig.model_fields


def show(report: dict[str, Any], *, as_json: bool) -> int:
    """Prints a report, and what is amiss on stderr; returns the exit code."""
    from speechlmm_train.evaluate.markdown import metric_lines
    from speechlmm_train.evaluate.report_files import to_json
    from speechlmm_train.evaluate.score import invalid_in, invalid_lines

    click.echo(to_json(report), nl=False) if as_json else click.echo("\n".join(metric_lines(report)))
    for name, own in report["datasets"].items():
        if own["without_reference"]:
            click.echo(
                f"{own['without_reference']} of {own['examples']} examples of {name!r} have no answer to compare with; "
                "they are not scored",
                err=True,
            )
        if own["cut"]:
            given = own["examples"] - own["failed"]
            count = f"all {given}" if own["cut"] == given > 1 else f"{own['cut']} of {given}"
            were = "was" if own["cut"] == 1 else "were"
            click.echo(f"{count} answers of {name!r} {were} cut at {own['cut_at']} tokens", err=True)
    invalid = invalid_lines(invalid_in(report))
    for line in invalid:
        click.echo(f"error: {line}", err=True)
    if report["failed"]:
        unread = report["unreadable"]
        rest = f"; {unread} of them could not be read and have no answer to be scored with" if unread else ""
        click.echo(f"{report['failed']} examples failed; the predictions say why{rest}", err=True)
    return 1 if report["failed"] or invalid else 0
