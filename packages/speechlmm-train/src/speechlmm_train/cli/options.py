"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def debug_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--debug``, which `main` looks for itself."""
    return click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback when something fails.")(
        function
    )


def metric_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds how answers are scored, and how that is shown."""
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
        click.option("--worst", type=click.IntRange(min=0), default=10, show_default=True, help="Examples to show."),
        click.option(
            "--normaliser",
            type=click.Choice(["basic", "whisper", "none"]),
            help="What error rates leave out of account.  [default: basic]",
        ),
        click.option(
            "--metric",
            "metrics",
            multiple=True,
            help="In place of the tasks' own; with options as bleu:tokenize=char. May be given more than once.",
        ),
    ):
        function = decorate(function)
    return function


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds all that `run` takes: what names a configuration, and what is to happen in its output folder."""
    for decorate in (
        click.option("--progress/--no-progress", default=True, help="Show a progress bar."),
        click.option("--overwrite", is_flag=True, help="Delete what an earlier run left in the output folder."),
        click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the output folder."),
        compose_options,
    ):
        function = decorate(function)
    return function


def compose_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what names a configuration: its name, the user's folder and files, and the overrides."""
    folder = click.Path(path_type=Path)
    for decorate in (
        click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
        click.option("--config-name", default="pretrain", show_default=True, help="Name of the configuration."),
        click.option("--config-dir", type=folder, help="Folder of your own configurations, searched first."),
        click.option(
            "--import",
            "imports",
            type=folder,
            multiple=True,
            help="Python file that registers components.",
        ),
        debug_option,
    ):
        function = decorate(function)
    return function
