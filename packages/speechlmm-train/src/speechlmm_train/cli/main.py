"""The group of commands. Each is imported when it is called, so that `--help` answers at once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

import click

from speechlmm_train.cli.commands import COMMANDS
from speechlmm_train.cli.errors import report
from speechlmm_train.interrupts import heed_once
from speechlmm_train.parallel.quiet import quiet_imports


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
@click.version_option(version("speechlmm-train"), prog_name="speechlmm-train")
def cli() -> None:
    """Trains and evaluates speech LLMs."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits: 0, or 2 for a user's mistake, 130 after Ctrl-C, 1 for a fault of ours."""
    heed_once()
    quiet_imports()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = cli.main(arguments or ["--help"], prog_name="speechlmm-train", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as exc:
        if "--debug" in arguments and not isinstance(exc, click.ClickException | click.Abort):
            raise
        sys.exit(report(exc))
    sys.exit(code if isinstance(code, int) else 0)
