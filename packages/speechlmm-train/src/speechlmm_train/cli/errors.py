"""Turns what went wrong into lines on stderr and an exit code."""

from __future__ import annotations

import sys

import click

from speechlmm_core.errors import SpeechLMMError

USAGE, INTERRUPTED, FAULT = 2, 130, 1


def report(exc: BaseException) -> int:
    """Prints one line for each fault and returns the exit code."""
    if isinstance(exc, click.Abort | KeyboardInterrupt):
        _say("interrupted")
        return INTERRUPTED
    if isinstance(exc, click.ClickException):
        _say(_usage(exc))
        return exc.exit_code if isinstance(exc, click.exceptions.Exit) else USAGE
    if isinstance(exc, SpeechLMMError):
        for line in str(exc).splitlines():
            _say(line)
        return USAGE
    module = type(exc).__module__.partition(".")[0]
    if module in ("pydantic_core", "pydantic", "omegaconf", "hydra"):
        _say(" ".join(str(exc).split()))
        return USAGE
    if isinstance(exc, OSError):
        _say(f"{exc.strerror or exc}{f': {exc.filename!r}' if exc.filename else ''}")
        return FAULT
    _say(f"{type(exc).__name__}: {' '.join(str(exc).split())} (--debug shows where)")
    return FAULT


def _usage(exc: click.ClickException) -> str:
    message = exc.format_message().replace("\n", " ")
    if isinstance(exc, click.UsageError) and message.startswith("No such command"):
        from speechlmm_core.registry import nearest
        from speechlmm_train.cli.commands import COMMANDS

        name = message.split("'")[1] if "'" in message else message
        return f"no such command {name!r}{nearest(name, list(COMMANDS))} (available: {', '.join(COMMANDS)})"
    return message


def _say(line: str) -> None:
    click.echo(f"error: {line}", file=sys.stderr)
