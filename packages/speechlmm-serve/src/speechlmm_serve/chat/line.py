"""What a line of the chat asks for: to end, to reset, to load a file, or to be answered. Imports no torch."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

RESET = "<reset>"
AUDIO = re.compile(r"(?:^|\s)audio:(?P<path>\S.*)$", re.DOTALL)


@dataclass(frozen=True)
class Line:
    """A line, understood."""

    text: str = ""
    """The message."""
    audio: Path | None = None
    """The file to load first."""
    reset: bool = False
    end: bool = False


def parse_line(line: str) -> Line:
    """Understands a line.

    An empty one ends the chat, ``<reset>`` clears it, and ``audio:<path>`` at the end of a message loads a file. The
    path may hold spaces as it is, be quoted, or escape its spaces as a shell does; ``~`` is the home folder.
    """
    text = line.strip()
    if not text:
        return Line(end=True)
    if text == RESET:
        return Line(reset=True)
    found = AUDIO.search(text)
    if found is None:
        return Line(text=text)
    return Line(text=text[: found.start()].strip(), audio=_path(found["path"].strip()))


def _path(written: str) -> Path:
    """The path that was meant: as it is written if there is such a file, else as a shell would read it."""
    plain = Path(written).expanduser()
    if plain.exists():
        return plain
    try:
        words = shlex.split(written)
    except ValueError:  # an apostrophe in a name is no quotation mark
        return plain
    return Path(words[0]).expanduser() if len(words) == 1 else plain
