"""`speechlmm-train prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from speechlmm_train.cli.options import debug_option

if TYPE_CHECKING:
    from speechlmm_train.prepare.sizes import ModelTarget


@click.command()
@click.argument("spec")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--check",
    type=click.Choice(["fast", "full"]),
    default="fast",
    show_default=True,
    help="fast: headers and hashes; full: decodes all media as well.",
)
@click.option("--index-dir", type=click.Path(path_type=Path), help="Where to write.  [default: X.index for X.yaml]")
@click.option(
    "--jobs",
    type=click.IntRange(0, 1024),
    help="Processes that read media; 0: this one alone.  [default: all cores]",
)
@click.option("--redo", is_flag=True, help="Read everything again, whatever is known.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many rows of each part.")
@click.option("--max-duration", type=click.FloatRange(min=0, min_open=True), help="Seconds of media at most.")
@click.option(
    "--max-words-per-minute",
    type=click.FloatRange(min=0, min_open=True),
    default=700.0,
    show_default=True,
    help="Words that are spoken in a minute at most.",
)
@click.option(
    "--max-characters-per-second",
    type=click.FloatRange(min=0, min_open=True),
    default=25.0,
    show_default=True,
    help="Characters that are spoken in a second at most.",
)
@click.option("--model-path", type=click.Path(path_type=Path), help="Count sizes for this model as well.")
@click.option("--config-name", help="Count sizes for the model of this configuration, with the overrides, as well.")
@click.option("--config-dir", type=click.Path(path_type=Path), help="Folder of your own configurations.")
@click.option("--import", "imports", type=click.Path(path_type=Path), multiple=True, help="Your own Python file.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
@debug_option
def prepare(
    *,
    spec: str,
    overrides: tuple[str, ...],
    check: Literal["fast", "full"],
    index_dir: Path | None,
    jobs: int | None,
    redo: bool,
    limit: int | None,
    max_duration: float | None,
    max_words_per_minute: float,
    max_characters_per_second: float,
    model_path: Path | None,
    config_name: str | None,
    config_dir: Path | None,
    imports: tuple[Path, ...],
    progress: bool,
) -> int:
    """Read every file of a dataset specification once, and write an index of what was found.

    SPEC is a path, or a name below conf/datasets.

    Training and evaluation then open the corpora without reading them. Rows that cannot be used are put into
    quarantine, with the reason; sets for evaluation are kept whole, and reported. A preparation that was interrupted
    goes on where it was, and a further one reads only what is new.

    With --model-path, or --config-name and the KEY=VALUEs that `run` takes, what the examples take of that model is
    counted as well, so that training starts at once.

    The exit code is 1 if nothing of a dataset can be used.
    """
    import os

    from rich.console import Console

    from speechlmm_core.data.index.layout import index_dir_of
    from speechlmm_core.data.spec.find import find_spec
    from speechlmm_train.compose import import_file
    from speechlmm_train.prepare.prepare import prepare as prepare_spec
    from speechlmm_train.prepare.report import QUARANTINE, REPORT, table
    from speechlmm_train.prepare.settings import Settings

    for file in imports:
        import_file(file)
    path = find_spec(spec, Path(), config_dir)
    jobs = len(os.sched_getaffinity(0)) if jobs is None else jobs
    targets: list[ModelTarget] = []
    if model_path is not None or config_name is not None or overrides:  # a mistake there shows before files are read
        from speechlmm_train.prepare.sizes import targets_of

        targets = targets_of(model_path, config_name, overrides, config_dir=config_dir)
    report = prepare_spec(
        path,
        index_dir=index_dir or index_dir_of(path),
        settings=Settings(check, max_duration, max_words_per_minute, max_characters_per_second),
        jobs=jobs,
        redo=redo,
        limit=limit,
        progress=progress,
    )
    Console(width=None if os.isatty(1) else 160).print(table(report))
    click.echo(report.summary())
    if report.flagged:
        click.echo(
            f"{report.flagged:,} kept for evaluation that training would leave out; what cannot be read fails there"
        )
    if report.quarantined or report.flagged:
        click.echo(f"why: {report.index_dir / REPORT}, each row: {report.index_dir / QUARANTINE}")
    for name in report.empty_datasets:
        click.echo(f"error: {report.why_empty(name)}", err=True)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    if report.empty_datasets:
        return 1
    if targets:
        from speechlmm_train.prepare.progress import Progress
        from speechlmm_train.prepare.sizes import count_sizes

        with Progress(shown=progress) as bars:
            counted = count_sizes(path, targets, index_dir=report.index_dir, jobs=jobs, progress=bars.counting)
        click.echo(f"sizes of {counted:,} examples counted")
    return 0
