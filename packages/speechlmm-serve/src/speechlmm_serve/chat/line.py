"""What a line of the chat asks for: to end, to reset, to load a file, or to be answered. Imports no torch."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

RESET = "<reset>"
MEDIUM = re.compile(r"(?:^|(?<=\s))(audio|video):(?=\S)")

ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True)
class Line:
    """A line, understood."""

    text: str = ""
    """The message."""
    audio: Path | None = None
    """The audio file to load first."""
    video: Path | None = None
    """The video file to load first."""
    reset: bool = False
    end: bool = False


def parse_line(line: str) -> Line:
    """Understands a line.

    An empty one ends the chat, ``<reset>`` clears it, and ``audio:<path>`` or ``video:<path>`` at the end of a message
    loads a file. The path may hold spaces as it is, be quoted, or escape its spaces as a shell does; ``~`` is the home
    folder.
    """
    text = line.strip()
    if not text:
        return Line(end=True)
    if text == RESET:
        return Line(reset=True)
    found = [
        (text[: match.start()].strip(), match[1], read_path(text[match.end() :])) for match in MEDIUM.finditer(text)
    ]
    if not found:
        return Line(text=text)
    # A path may itself hold ` audio:`; where none of the readings is a file, the last one was meant.
    message, kind, path = next((one for one in found if _exists(one[2])), found[-1])
    return Line(text=message, video=path) if kind == "video" else Line(text=message, audio=path)


def read_path(written: str) -> Path:
    """The path that was meant: as it is written if there is such a file, else as a shell would read it."""
    plain = _expand(written)
    readings = [plain]
    try:
        words = shlex.split(written)
    except ValueError:  # an apostrophe in a name is no quotation mark
        words = []
    if len(words) == 1 and words[0]:
        readings.append(_expand(words[0]))
    found = next((one for one in [*readings, _expand(ESCAPED.sub(r"\1", written))] if _exists(one)), None)
    return found or readings[-1]


def _expand(written: str) -> Path:
    try:
        return Path(written).expanduser()
    except RuntimeError:  # `~` and what is no user
        return Path(written)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long a name, or a null byte
        return False
