"""The terminal around a conversation: reads lines from a keyboard or a pipe, and writes answers as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import click

from speechlmm_core.errors import SpeechLMMError
from speechlmm_serve.chat.line import Line, parse_line
from speechlmm_serve.chat.session import ChatSession

HELP = (
    "An empty message ends the chat, <reset> clears it, and audio:/path/to/file at the end of a message loads a file."
)


def run_chat(session: ChatSession, *, audio: Path | None = None) -> None:
    """Talks until the user ends it.

    Args:
        session: The conversation.
        audio: A file to start with.

    Raises:
        SpeechLMMError: The file to start with cannot be used.
    """
    interactive = sys.stdin.isatty()
    if interactive:
        click.echo(HELP, err=True)
    if audio is not None:
        _load(session, audio)
        if session.can_ask_task:
            _say(session.ask_task())
    read = _keyboard() if interactive else _pipe
    while True:
        try:
            line = parse_line(read())
        except EOFError:
            return
        except KeyboardInterrupt:
            click.echo("(Ctrl-D or an empty message ends the chat)", err=True)
            continue
        if line.end:
            return
        try:
            _do(session, line)
        except SpeechLMMError as exc:
            click.echo(f"error: {exc}", err=True)


def _do(session: ChatSession, line: Line) -> None:
    if line.reset:
        session.reset()
        click.echo("(cleared)", err=True)
        return
    if line.audio is not None:
        _load(session, line.audio)
    if line.text:
        _say(session.ask(line.text))
    elif session.can_ask_task:
        _say(session.ask_task())


def _load(session: ChatSession, path: Path) -> None:
    duration = session.load(path)
    click.echo(f"(loaded {str(path)!r}, {duration:.1f} s)", err=True)


def _say(pieces: Iterator[str]) -> None:
    """Writes an answer; Ctrl-C stops it and not the program."""
    with closing(pieces):  # pyright: ignore[reportArgumentType]  # every iterator here is a generator
        try:
            for piece in pieces:
                click.echo(piece, nl=False)
                sys.stdout.flush()
            click.echo()
        except KeyboardInterrupt:
            click.echo()
            click.echo("(stopped)", err=True)


def _keyboard() -> Callable[[], str]:
    """A line editor with a history of what was typed; Ctrl-D raises EOFError."""
    from prompt_toolkit import PromptSession

    editor: PromptSession[str] = PromptSession()
    return lambda: editor.prompt("> ")


def _pipe() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
