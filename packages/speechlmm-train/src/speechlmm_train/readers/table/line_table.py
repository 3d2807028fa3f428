"""A table by lines as random-access records: what stays in memory is where each row starts. Imports no torch."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from speechlmm_core.data.columns import lookup
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.text_lines import MAX_LINE
from speechlmm_core.errors import DataError
from speechlmm_train.readers.table.dialect import (
    Decoder,
    Dialect,
    JsonLines,
    Quoted,
    RowError,
    as_record,
    csv_rows,
    with_parts,
)

BOM = b"\xef\xbb\xbf"


class LineTable:
    """The rows of one file.

    Args:
        path: The table.
        dialect: How a line becomes records.
        shown: What messages call the table.
        skip_first: Whether the first line is no row.
        where: Values that rows must have, by column.
        parts: Regular expressions with named groups, by column, which become columns.
        told: What the file's name tells.
        media_root: Folder where relative paths start.
        faults: Where faults go.
        limit: How many rows are taken at most.
    """

    def __init__(
        self,
        path: Path,
        dialect: Dialect,
        *,
        shown: str,
        skip_first: bool,
        where: Mapping[str, Sequence[str]],
        parts: Mapping[str, re.Pattern[str]],
        told: Mapping[str, str],
        media_root: str,
        faults: Faults,
        limit: int | None = None,
    ) -> None:
        self.path, self.dialect, self.shown = path, dialect, shown
        self._where, self._parts, self._told, self._root = where, parts, told, media_root
        self._starts, self._ends = array("Q"), array("Q")
        self._numbers = array("I")
        self._items = array("I")
        self.columns: Sequence[str] = ()
        with path.open("rb") as file:
            self._stamp = _stamp(file.fileno())
            for number, start, end, make in self._rows(file, skip_first, faults):
                if limit is not None and len(self._starts) >= limit:
                    break
                self._scan(number, start, end, make, faults)

    def _scan(
        self, number: int, start: int, end: int, make: Callable[[], list[dict[str, Any]]], faults: Faults
    ) -> None:
        try:
            for item, record in enumerate(make()):
                full = with_parts(record, self._parts) if self._parts else record
                if self._where and not self._wanted(full):
                    continue
                if not self._starts:
                    # Objects may differ in their keys, so columns of JSON are checked when a row is used.
                    self.columns = () if isinstance(self.dialect, JsonLines) else list(full)
                self._starts.append(start)
                self._ends.append(end)
                self._numbers.append(number)
                self._items.append(item)
        except (RowError, DataError) as exc:
            faults.add(f"{self.shown}:{number}", str(exc), order=number)

    def _rows(self, file: IO[bytes], skip_first: bool, faults: Faults) -> Iterator[tuple[int, int, int, Any]]:
        """Number, first and last byte of each row, and what makes its records."""
        lines = _Lines(file, self.dialect.decode)
        try:
            if skip_first:
                self._skip(lines)
            if isinstance(self.dialect, Quoted):
                yield from self._quoted(lines, self.dialect)
                return
            for line in lines:
                if line.strip():
                    yield lines.number, lines.start, lines.end, lambda line=line: self.dialect.records(line)
        except RowError as exc:
            faults.add(f"{self.shown}:{max(1, lines.number)}", str(exc), order=lines.number)

    def _skip(self, lines: _Lines) -> None:
        if isinstance(self.dialect, Quoted):
            next(csv_rows(lines.texts(), self.dialect.delimiter), None)
        else:
            next(iter(lines), None)

    def _quoted(self, lines: _Lines, dialect: Quoted) -> Iterator[tuple[int, int, int, Any]]:
        start, number = lines.end, lines.number + 1
        for values in csv_rows(lines.texts(), dialect.delimiter):
            if values:
                yield number, start, lines.end, lambda values=values: [as_record(dialect.columns, values)]
            start, number = lines.end, lines.number + 1

    def _wanted(self, record: Mapping[str, Any]) -> bool:
        return all(str(lookup(record, column, "where")) in values for column, values in self._where.items())

    def __len__(self) -> int:
        return len(self._starts)

    def record(self, index: int) -> Mapping[str, Any]:
        """A row.

        Raises:
            DataError: The table was changed after it was opened.
        """
        return next(self.each(range(index, index + 1)))

    def each(self, indices: Iterable[int]) -> Iterator[Mapping[str, Any]]:
        """Some rows, one after the other.

        Raises:
            DataError: The table was changed after it was opened.
        """
        # Opened anew each time: a corpus may have more tables than a process may have open files.
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise DataError(f"{self.shown}: cannot be read: {exc.strerror or exc}") from exc
        try:
            if _stamp(handle) != self._stamp:
                raise DataError(f"{self.shown} was changed after it was opened; start again")
            for index in indices:
                start = self._starts[index]
                line = os.pread(handle, self._ends[index] - start, start)
                record = self.dialect.records(line)[self._items[index]]
                yield with_parts(record, self._parts) if self._parts else record
        except (OSError, RowError, IndexError) as exc:
            raise DataError(f"{exc}; has the table been changed?") from exc
        finally:
            os.close(handle)

    def number(self, index: int) -> int:
        """The line of a row, from 1."""
        return self._numbers[index]

    def place(self, index: int) -> str:
        """File and line of a row."""
        return f"{self.shown}:{self._numbers[index]}"

    def root(self, index: int) -> str:
        """Folder where the row's relative paths start."""
        return self._root

    def constants(self, index: int) -> Mapping[str, str]:
        """What the file's name tells."""
        return self._told


class _Lines:
    """The lines of a file, with where the last one stands."""

    def __init__(self, file: IO[bytes], decode: Decoder) -> None:
        self.file, self.decode = file, decode
        self.number = 0
        head = file.read(4)
        self.utf_16 = head[:2] in (b"\xff\xfe", b"\xfe\xff")
        self.start = self.end = len(BOM) if head.startswith(BOM) else 0
        file.seek(self.start)

    def __iter__(self) -> Iterator[bytes]:
        if self.utf_16:
            raise RowError("UTF-16, which is not read; save the table as UTF-8")
        while line := self.file.readline(MAX_LINE):
            self.number += 1
            if len(line) == MAX_LINE:
                raise RowError(f"a line of over {MAX_LINE >> 20} MiB; this is no table by lines")
            self.start, self.end = self.end, self.end + len(line)
            yield line

    def texts(self) -> Iterator[str]:
        """The lines as text, with their ends."""
        for line in self:
            yield self.decode.whole(line)


def _stamp(handle: int) -> tuple[int, int]:
    status = os.fstat(handle)
    return status.st_size, status.st_mtime_ns


def first_line(path: Path, decode: Decoder) -> str:
    """The first line of a table.

    Raises:
        RowError: It is no text.
    """
    with path.open("rb") as file:
        return next(_Lines(file, decode).texts(), "")
