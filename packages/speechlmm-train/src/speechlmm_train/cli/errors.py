"""Turns what went wrong into lines on stderr and an exit code."""

from __future__ import annotations

import click

from speechlmm_core.wording import USAGE, word


def report(exc: BaseException) -> int:
    """Prints one line for each fault and returns the exit code."""
    if isinstance(exc, click.Abort):
        # click puts this in the place of a KeyboardInterrupt, whose own words say what is left.
        lines, code = word(exc.__cause__ if isinstance(exc.__cause__, KeyboardInterrupt) else KeyboardInterrupt())
    elif isinstance(exc, click.ClickException):
        lines, code = [_usage(exc)], USAGE
    else:
        lines, code = word(exc)
    for line in lines:
        click.echo(f"error: {line}", err=True)
    return code


def _usage(exc: click.ClickException) -> str:
    message = " ".join(exc.format_message().split())
    if isinstance(exc, click.UsageError) and message.startswith("No such command"):
        from speechlmm_core.registry import nearest
        from speechlmm_train.cli.commands import COMMANDS

        name = message.split("'")[1] if "'" in message else message
        return f"no such command {name!r}{nearest(name, list(COMMANDS))} (available: {', '.join(COMMANDS)})"
    return message
