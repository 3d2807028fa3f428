"""Opens the tables of a corpus as records. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from speechlmm_core.data.faults import Faults
from speechlmm_core.data.records import Records
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection
from speechlmm_train.readers.file_pattern import FoundFile, chosen, find_files
from speechlmm_train.readers.record_reader import ConcatRecords
from speechlmm_train.readers.table.dialect import (
    Decoder,
    Dialect,
    JsonLines,
    Quoted,
    RowError,
    Separated,
    csv_rows,
    name_columns,
)
from speechlmm_train.readers.table.json_table import JsonTable
from speechlmm_train.readers.table.line_table import LineTable, first_line
from speechlmm_train.readers.unpack import unpacked

if TYPE_CHECKING:
    from speechlmm_train.readers.table.config import Format, TableDatasetConfig

ENDINGS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "txt",
}
PLACEHOLDER = re.compile(r"\{(\w*)(?::(\d+))?\}")


def open_tables(config: TableDatasetConfig, root: Path, selection: Selection) -> Records:
    """Opens the tables below ``root`` that the selection asks for.

    Raises:
        DataError: There are none, or what is wrong with them: all faults are counted, the first listed.
    """
    if root.is_file() or not config.templates:
        if not root.is_file():
            raise DataError(f'{root}: expected a table, or a folder with its `files` (`files: "{{partition}}.tsv"`)')
        found, folder = [FoundFile(root, {})], root.parent
    else:
        found, folder = find_files(root, config.templates, selection, config.names), root
    opener = _Opener(config, folder, selection)
    tables = [opener.open(one) for one in found]
    opener.faults.raise_if_any()
    records = ConcatRecords(tables, [one.path for one in found])
    if not len(records):
        asked = f" with {config.where}" if config.where else ""
        raise DataError(f"{', '.join(str(one.path) for one in found[:3])}: no rows{asked}; check `files` and `where`")
    return records


class _Opener:
    def __init__(self, config: TableDatasetConfig, folder: Path, selection: Selection) -> None:
        self.config, self.folder = config, folder
        self.selected = {name: config.names.written(name, value) for name, value in chosen(selection).items()}
        self.faults = Faults()
        self.where = {name: [value] if isinstance(value, str) else value for name, value in config.where.items()}
        self.parts = {column: parts_pattern(column, template) for column, template in config.parts.items()}
        try:
            encodes_ascii = "\n,az".encode(config.encoding) == b"\n,az"
        except (LookupError, UnicodeError):
            encodes_ascii = False
        if not encodes_ascii:
            raise DataError(
                f"`encoding` {config.encoding!r} is none in which ASCII is as it is, such as utf-8 or cp1252"
            )
        self.decode = Decoder(config.encoding)

    def open(self, found: FoundFile) -> Records:
        """The rows of one table."""
        shown = str(found.path)
        try:
            path = unpacked(found.path)
            shared = {
                "shown": shown,
                "where": self.where,
                "parts": self.parts,
                "told": found.told,
                "media_root": self.media_root(found),
                "faults": self.faults,
            }
            kind = self.kind(found.path)
            if kind == "json":
                return JsonTable(path, self.config.record_path, decode=self.decode, **shared)
            dialect, skip_first = self.dialect(path, kind)
            return LineTable(path, dialect, skip_first=skip_first, **shared)
        except RowError as exc:
            self.faults.add(f"{shown}:1", str(exc))
        except OSError as exc:
            self.faults.add(shown, f"cannot be read: {exc.strerror or exc}")
        return ConcatRecords([])

    def kind(self, path: Path) -> Format:
        if self.config.format is not None:
            return self.config.format
        ending = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
        if ending.lower() not in ENDINGS:
            raise DataError(f"{path}: its ending does not tell what table it is; give its `format` (csv, tsv, json, …)")
        return ENDINGS[ending.lower()]

    def dialect(self, path: Path, kind: Format) -> tuple[Dialect, bool]:
        """How lines are read, and whether the first is passed over.

        Raises:
            RowError: The first line names no columns.
        """
        config = self.config
        if kind == "jsonl":
            return JsonLines(self.decode, config.record_path), False
        delimiter = config.delimiter or {"csv": ",", "tsv": "\t"}.get(kind)
        quoting = kind == "csv" if config.quoting is None else config.quoting
        if quoting and (delimiter is None or len(delimiter) != 1):
            raise DataError(f"`quoting` needs a `delimiter` of one character, got {delimiter!r}")
        given = config.column_names or (["text"] if delimiter is None else None)
        header = given is None if config.header is None else config.header
        if given is None and not header:
            raise DataError(f"{path}: name its columns by `column_names`, as the first line does not")
        columns = name_columns(given) if given else name_columns(self.first_row(path, delimiter or "\t", quoting))
        if quoting:
            return Quoted(self.decode, columns, delimiter or ","), header
        return Separated(self.decode, columns, delimiter, rest=config.column_names is not None), header

    def first_row(self, path: Path, delimiter: str, quoting: bool) -> list[str]:
        line = first_line(path, self.decode)
        if not line:
            raise RowError("the table is empty; its first line names the columns")
        if quoting:
            return next(csv_rows(iter([line]), delimiter), [])
        return line.rstrip("\r\n").split(None if delimiter == " " else delimiter)

    def media_root(self, found: FoundFile) -> str:
        template = self.config.media_root
        if template is None:
            return str(found.path.parent.absolute())
        told = {name: self.config.names.written(name, value) for name, value in found.told.items()}
        return str((self.folder / _filled(template, {**self.selected, **told})).absolute())


def parts_pattern(column: str, template: str) -> re.Pattern[str]:
    """What a template such as ``{speaker}_{rest}`` stands for, as a regular expression.

    Raises:
        DataError: It is no template.
    """
    expression, at = "", 0
    names: set[str] = set()
    for match in PLACEHOLDER.finditer(template):
        name, width = match.groups()
        if not name.isidentifier() or name in names:
            raise DataError(f"`parts.{column}` {template!r}: each pair of braces needs a name of its own")
        names.add(name)
        expression += re.escape(template[at : match.start()])
        expression += f"(?P<{name}>.{{{width}}})" if width else f"(?P<{name}>.+?)"
        at = match.end()
    if not names:
        raise DataError(f"`parts.{column}` {template!r} names no part; write names into braces: {{speaker}}_{{number}}")
    return re.compile(expression + re.escape(template[at:]), re.DOTALL)


def _filled(template: str, values: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise DataError(f"`media_root` {template!r}: neither the files' names nor the selection tell {match[1]!r}")
        return values[match[1]]

    return PLACEHOLDER.sub(value, template)
