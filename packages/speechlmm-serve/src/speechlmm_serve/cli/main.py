"""The group of commands. Each is imported when it is called, so that `--help` answers at once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

import click

COMMANDS: dict[str, tuple[str, str]] = {
    "chat": ("speechlmm_serve.cli.chat:chat", "Talk with a model in the terminal."),
    "infer": ("speechlmm_serve.cli.infer:infer", "Run a task over audio files, a list or a manifest."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; their summaries stand in `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order in which they are shown."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the summaries without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("speechlmm-serve"), prog_name="speechlmm-serve")
def cli() -> None:
    """Talks with trained speech LLMs, and runs them over files."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits: 0, or 2 for a user's mistake, 130 after Ctrl-C, 1 for a fault."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = cli.main(arguments or ["--help"], prog_name="speechlmm-serve", standalone_mode=False)
    except click.exceptions.Exit as exc:
        sys.exit(exc.exit_code)
    except click.Abort:
        click.echo("error: interrupted", err=True)
        sys.exit(130)
    except click.ClickException as exc:
        click.echo(f"error: {_usage(exc)}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to say, not even when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as exc:
        if "--debug" in arguments:
            raise
        from speechlmm_core.wording import word

        lines, code = word(exc)
        for line in lines:
            click.echo(f"error: {line}", err=True)
        sys.exit(code)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(exc: click.ClickException) -> str:
    message = " ".join(exc.format_message().split())
    if not (isinstance(exc, click.UsageError) and message.startswith("No such command '")):
        return message
    from speechlmm_core.registry import nearest

    name = message.split("'")[1]
    return f"no such command {name!r}{nearest(name, list(COMMANDS))} (available: {', '.join(COMMANDS)})"
