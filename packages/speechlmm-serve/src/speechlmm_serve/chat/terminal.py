"""The terminal around a conversation: reads lines from a keyboard or a pipe, and writes answers as they come."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import closing
from io import TextIOWrapper
from pathlib import Path

import click

from speechlmm_core.errors import SpeechLMMError
from speechlmm_serve.chat.line import Line, parse_line
from speechlmm_serve.chat.session import ChatSession, Pieces

HELP = (
    "An empty message ends the chat, <reset> clears it, and audio:/path/to/file (or video:/path/to/file) at the end of "
    "a message loads a file."
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that steer a terminal; a model's answer must not."""


def run_chat(session: ChatSession, *, audio: Path | None = None, video: Path | None = None) -> int:
    """Talks until the user ends it.

    Args:
        session: The conversation.
        audio: An audio file to start with.
        video: A video file to start with.

    Returns:
        How many messages could not be answered.

    Raises:
        SpeechLMMError: The file to start with cannot be used.
        KeyboardInterrupt: Ctrl-C while reading from a pipe.
    """
    interactive = sys.stdin.isatty()
    _tolerate_bytes()
    given = Line(audio=audio, video=video)
    starts = _load(session, given)
    read = _keyboard() if interactive else _pipe
    if interactive:
        click.echo(HELP, err=True)
    failed = _attempt(session, Line()) if starts else 0
    while True:
        try:
            line = parse_line(read())
        except EOFError:
            return failed
        except KeyboardInterrupt:
            if not interactive:
                raise
            click.echo("(Ctrl-D or an empty message ends the chat)", err=True)
            continue
        if line.end:
            return failed
        failed += _attempt(session, line)


def _attempt(session: ChatSession, line: Line) -> int:
    """Does what a line asks for; what is wrong with it, and Ctrl-C, end the attempt and not the program."""
    try:
        _do(session, line)
    except SpeechLMMError as exc:
        click.echo(f"error: {' '.join(str(exc).split())}", err=True)
        return 1
    except KeyboardInterrupt:
        click.echo("(stopped)", err=True)
    return 0


def _do(session: ChatSession, line: Line) -> None:
    if line.reset:
        session.reset()
        click.echo("(cleared)", err=True)
        return
    loaded = _load(session, line)
    if line.text:
        _say(session.ask(line.text))
    elif session.can_ask_task:
        _say(session.ask_task())
    elif loaded:
        click.echo("(ask about it; with --task asr it would be transcribed at once)", err=True)


def _load(session: ChatSession, line: Line) -> bool:
    """Loads the file that a line names; False where it names none."""
    modality, path = ("audio", line.audio) if line.video is None else ("video", line.video)
    if path is None:
        return False
    duration = session.load(path, modality)
    click.echo(f"(loaded {str(path)!r}, {duration:.1f} s)", err=True)
    return True


def _say(pieces: Pieces) -> None:
    """Writes an answer as it comes."""
    started = False
    with closing(pieces):
        try:
            for piece in pieces:
                started = True
                click.echo(CONTROL.sub("\ufffd", piece), nl=False)
                sys.stdout.flush()
            click.echo()
        except (KeyboardInterrupt, SpeechLMMError):
            if started:
                click.echo()
            raise


def _tolerate_bytes() -> None:
    """Whatever encoding the terminal has: a path may be any bytes, and an answer any character."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)


def _keyboard() -> Callable[[], str]:
    """A line editor with a history of what was typed; Ctrl-D raises EOFError."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    # The prompt is no part of the answers: where those go into a file, it goes to standard error.
    editor: PromptSession[str] = PromptSession(output=create_output(always_prefer_tty=True))
    return lambda: editor.prompt("> ")


def _pipe() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
