"""What a row of a table by lines is: how a line becomes a record. Imports no torch."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speechlmm_train.readers.table.nested import NestedError, rows

MAX_FIELD = 1_000_000
"""Characters of a column; more are a missing line break or quote."""


class RowError(Exception):
    """A row that is none; the text says why."""


@dataclass(frozen=True)
class Decoder:
    """Turns bytes of a table into text."""

    encoding: str = "utf-8"

    def __call__(self, line: bytes) -> str:
        """The text of a line, without its end.

        Raises:
            RowError: It is none in this encoding.
        """
        return self.whole(line).rstrip("\r\n")

    def whole(self, line: bytes) -> str:
        """The text of a line.

        Raises:
            RowError: It is none in this encoding.
        """
        if b"\0" in line:
            raise RowError("a NUL byte, which no text has; save the table as UTF-8")
        try:
            return line.decode(self.encoding)
        except UnicodeDecodeError as exc:
            raise RowError(
                f"not {self.encoding.upper()} ({exc.reason} at byte {exc.start}); save the table as UTF-8, or name its "
                "`encoding`"
            ) from exc


@dataclass(frozen=True)
class JsonLines:
    """An object a line, or several rows in it."""

    decode: Decoder
    record_path: str = ""

    def records(self, line: bytes) -> list[dict[str, Any]]:
        """The rows of a line.

        Raises:
            RowError: It is no object, or has no such rows.
        """
        text = self.decode(line)
        try:
            value = json.loads(text)
        except json.JSONDecodeError as exc:
            raise RowError(f"bad JSON: {exc.msg} at column {exc.colno}") from exc
        except (ValueError, RecursionError) as exc:  # thousands of digits, or of brackets
            raise RowError(f"bad JSON: {exc}") from exc
        if not isinstance(value, dict):
            raise RowError(f"expected a JSON object, got {value!r:.60}")
        if "\\ud" in text or "\\uD" in text:
            check_text(value)
        try:
            return list(rows(value, self.record_path))
        except NestedError as exc:
            raise RowError(str(exc)) from exc


@dataclass(frozen=True)
class Separated:
    """Columns with something in between; nothing quotes."""

    decode: Decoder
    columns: Sequence[str]
    delimiter: str | None
    rest: bool
    """Whether the last column takes the rest of the line."""

    def records(self, line: bytes) -> list[dict[str, Any]]:
        """The row of a line.

        Raises:
            RowError: It has more columns, or fewer.
        """
        text = self.decode(line)
        if self.delimiter is None:
            values = [text]
        elif self.delimiter == " ":
            values = text.split(None, len(self.columns) - 1 if self.rest else -1)
        else:
            values = text.split(self.delimiter, len(self.columns) - 1 if self.rest else -1)
        return [as_record(self.columns, values)]


@dataclass(frozen=True)
class Quoted:
    """CSV as Python's module reads it: a quoted column may have line breaks in it."""

    decode: Decoder
    columns: Sequence[str]
    delimiter: str

    def records(self, lines: bytes) -> list[dict[str, Any]]:
        """The row of some lines.

        Raises:
            RowError: It has more columns, or fewer, or a quote does not end.
        """
        return [as_record(self.columns, next(csv_rows(iter([self.decode(lines)]), self.delimiter), []))]


Dialect = JsonLines | Separated | Quoted


def csv_rows(lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    """The rows of CSV.

    Raises:
        RowError: A quote does not end.
    """
    try:
        yield from csv.reader(lines, delimiter=delimiter, strict=True)
    except csv.Error as exc:
        raise RowError(f"no CSV: {exc}; does a quote lack its end?") from exc


def as_record(columns: Sequence[str], values: Sequence[str]) -> dict[str, Any]:
    """A row's values by column; an empty one is None.

    Raises:
        RowError: There are more values than columns, or fewer, or one is too long.
    """
    if len(values) != len(columns):
        raise RowError(f"expected {len(columns)} columns ({', '.join(columns)[:200]}), got {len(values)}")
    for name, value in zip(columns, values, strict=True):
        if len(value) > MAX_FIELD:
            raise RowError(f"column {name!r} has {len(value)} characters; is a line break or a quote missing?")
    return {name: value or None for name, value in zip(columns, values, strict=True)}


def check_text(value: Any) -> None:
    """Makes sure that JSON's escapes make whole characters.

    Raises:
        RowError: One is half a character.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        raise RowError("half a character (a lone surrogate escape) in a text") from exc


def name_columns(values: Sequence[str]) -> list[str]:
    """The columns that a first line names; one without a name (an index) gets `column_<number>`.

    Raises:
        RowError: Two have the same name.
    """
    names = [value.strip() or f"column_{number}" for number, value in enumerate(values, 1)]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise RowError(f"the first line names the column {twice[0]!r} twice; name the columns by `column_names`")
    return names


def with_parts(record: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """A record with what its columns are made up of.

    Raises:
        RowError: A column is not made up as was said.
    """
    found = dict(record)
    for column, fits in parts.items():
        value = record.get(column)
        match = fits.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise RowError(f"`parts.{column}` does not fit {value!r:.80}")
        found.update(match.groupdict())
    return found
