"""Lines of text files by number, without keeping them: 16 bytes a line stay in memory. Imports no torch."""

from __future__ import annotations

import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from speechlmm_core.data.text_lines import MAX_LINE, check_regular, each_line
from speechlmm_core.errors import DataError

KEPT_BYTES = 1 << 16
"""The last file that was read stays in memory up to this size: corpora have thousands of small lists."""
MAX_TEXT = 512 << 20
"""Characters of a file that is read in one."""
_BOM = b"\xef\xbb\xbf"


class Lines:
    """The lines of files, one file after the other, read when they are asked for; picklable, safe in forks.

    Args:
        paths: The files.
        keep_empty: Whether empty lines count, as they do in files that are aligned line by line.

    Raises:
        DataError: A file cannot be read, or has a line that is too long.
    """

    def __init__(self, paths: Sequence[str], *, keep_empty: bool = False) -> None:
        self.paths = list(paths)
        self._starts = array("Q")
        self._numbers = array("I")
        self._firsts: list[int] = []
        self._kept: tuple[int, bytes] | None = None
        for path in self.paths:
            self._firsts.append(len(self._starts))
            try:
                check_regular(path)
                with open(path, "rb") as file:
                    start = 0
                    for number, line in enumerate(each_line(file, path), 1):
                        if keep_empty or (line if start else line.removeprefix(_BOM)).strip():
                            self._starts.append(start)
                            self._numbers.append(number)
                        start += len(line)
            except OSError as exc:
                raise DataError(unreadable(path, exc)) from exc

    def __len__(self) -> int:
        return len(self._starts)

    def line(self, index: int) -> str:
        """A line without its end.

        Raises:
            DataError: The file is gone, or the line is not UTF-8.
        """
        number, start = self.file(index), self._starts[index]
        kept = self._kept
        if kept is None or kept[0] != number:
            try:
                with open(self.paths[number], "rb") as file:
                    if file.seek(0, os.SEEK_END) > KEPT_BYTES:
                        file.seek(start)
                        return self._decoded(index, file.readline(MAX_LINE))
                    file.seek(0)
                    kept = self._kept = number, file.read()
            except OSError as exc:
                raise DataError(unreadable(self.paths[number], exc)) from exc
        end = kept[1].find(b"\n", start) + 1
        return self._decoded(index, kept[1][start : end or None])

    def path(self, index: int) -> str:
        """The file of a line."""
        return self.paths[self.file(index)]

    def file(self, index: int) -> int:
        """The number of a line's file."""
        return bisect_right(self._firsts, index) - 1

    def count_in(self, file: int) -> int:
        """How many lines a file has."""
        end = self._firsts[file + 1] if file + 1 < len(self.paths) else len(self)
        return end - self._firsts[file]

    def place(self, index: int) -> str:
        """Where a line stands, as messages name it (``dev.tsv:12``)."""
        return f"{self.path(index)}:{self._numbers[index]}"

    def all(self) -> Iterator[str]:
        """All lines in order, each file read once.

        Raises:
            DataError: A file cannot be read, or is not UTF-8.
        """
        at = 0
        for number, path in enumerate(self.paths):
            end = self._firsts[number] + self.count_in(number)
            with open(path, "rb") as file:
                while at < end:
                    file.seek(self._starts[at])
                    yield self._decoded(at, file.readline(MAX_LINE))
                    at += 1

    def _decoded(self, index: int, line: bytes) -> str:
        try:
            return line.removeprefix(_BOM if self._starts[index] == 0 else b"").decode().rstrip("\r\n")
        except UnicodeDecodeError as exc:
            raise DataError(f"{self.place(index)} is not UTF-8: {exc}") from exc


class AlignedLines:
    """Files that belong together line by line: line 7 of one says the same as line 7 of the other.

    Args:
        columns: Paths by column, as many for each.

    Raises:
        DataError: A file cannot be read, or two that belong together differ in their number of lines.
    """

    def __init__(self, columns: dict[str, list[str]]) -> None:
        self.lines = {name: Lines(paths, keep_empty=True) for name, paths in columns.items()}
        first, *others = self.lines
        for other in others:
            for number, (left, right) in enumerate(zip(columns[first], columns[other], strict=True)):
                counts = [self.lines[name].count_in(number) for name in (first, other)]
                if counts[0] != counts[1]:
                    raise DataError(
                        f"{left!r} has {counts[0]} lines and {right!r} has {counts[1]}; they must correspond by line"
                    )
        self._first = self.lines[first]

    def __len__(self) -> int:
        return len(self._first)

    def row(self, index: int) -> dict[str, str]:
        """The lines of a number, by column."""
        return {name: lines.line(index) for name, lines in self.lines.items()}

    def file(self, index: int) -> int:
        """The number of a row's file."""
        return self._first.file(index)

    def place(self, index: int) -> str:
        """Where a row stands, as messages name it."""
        return self._first.place(index)


def unreadable(path: str, exc: OSError) -> str:
    """Why a file of a corpus cannot be read, for the user."""
    if isinstance(exc, FileNotFoundError):
        return f"{path!r} does not exist; is the corpus unpacked completely?"
    return f"{os.fspath(path)!r} cannot be read: {exc.strerror or exc}"


def read_text(path: str) -> str:
    """The content of a text file.

    Raises:
        DataError: It cannot be read, is not UTF-8, or is far too large.
    """
    try:
        check_regular(path)
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_TEXT + 1)
    except OSError as exc:
        raise DataError(unreadable(path, exc)) from exc
    except UnicodeDecodeError as exc:
        raise DataError(f"{path!r} is not UTF-8: {exc}") from exc
    if len(text) > MAX_TEXT:
        raise DataError(f"{path!r} has over {MAX_TEXT >> 20} Mi characters; expected the texts of a corpus")
    return text


def parse_json(text: str | bytes) -> Any:
    """What JSON says.

    Raises:
        ValueError: It is none, is nested too deeply, or has escapes that make half a character.
    """
    try:
        found = json.loads(text)
    except RecursionError as exc:
        raise ValueError("brackets are nested too deeply") from exc
    written = text.encode() if isinstance(text, str) else text
    if b"\\ud" in written or b"\\uD" in written:
        json.dumps(found, ensure_ascii=False).encode()  # a UnicodeEncodeError is a ValueError
    return found
