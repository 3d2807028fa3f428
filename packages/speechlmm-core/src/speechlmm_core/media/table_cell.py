"""The bytes in a cell of an Arrow or Parquet file. Imports no torch, and pyarrow late (`speechlmm-core[parquet]`).

Arrow files, both kinds of them (IPC file and stream, as `datasets` writes it), are memory-mapped: a cell costs the
pages that it lies on. Parquet has to be decoded by row group, of which the last few are kept: reading it at random is
slow, and the `parquet` dataset reader has such files converted to Arrow. A few files stay open. What is open belongs to
the process, so that a fork starts anew; threads take turns at opening.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import Any

from speechlmm_core.errors import MediaError, MissingDependencyError

OPEN_FILES = 32
OPEN_ROW_GROUPS = 4


class _Opened:
    """What one process has open, by what it was opened for; the longest unused goes first."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = RLock()
        self.kept: dict[int, OrderedDict[Any, Any]] = {}

    def get(self, key: Any, make: Callable[[], Any], limit: int) -> Any:
        with self.lock:
            kept = self.kept.setdefault(limit, OrderedDict())
            if key not in kept:
                kept[key] = make()
                while len(kept) > limit:
                    kept.popitem(last=False)
            kept.move_to_end(key)
            return kept[key]


_opened: list[_Opened] = []


def _files() -> _Opened:
    if not _opened or _opened[-1].process != os.getpid():
        _opened[:] = [_Opened()]  # its lock may have been held while the process was forked
    return _opened[-1]


def cell_bytes(path: Path, row: int, column: str, *, name: str) -> memoryview | Path:
    """The bytes of a cell; a path where it holds that of a file, which must lie in the table's folder or below.

    Args:
        path: The table's file.
        row: Row, from 0.
        column: A binary column, one of objects with `bytes` and `path`, or a path into one (`audio.bytes`).
        name: What messages call the cell.

    Raises:
        MediaError: The file is no table or damaged, or has no such cell, or that holds no bytes.
        MissingDependencyError: pyarrow is not installed.
        OSError: The file cannot be opened.
    """
    try:
        import pyarrow as pa
    except ModuleNotFoundError as exc:
        raise MissingDependencyError(
            f"{name}: reading it needs pyarrow, which is not installed: pip install 'speechlmm-core[parquet]'"
        ) from exc
    status = path.stat()
    key = (str(path.absolute()), status.st_size, status.st_mtime_ns)
    try:
        table = _files().get(key, lambda: open_table(path), OPEN_FILES)
        if row >= table.num_rows:
            raise MediaError(f"{name}: the table has {table.num_rows} rows; has it been changed?")
        top = column if column in table.names else column.partition(".")[0]
        if top not in table.names:
            raise MediaError(f"{name}: the table has no such column (columns: {', '.join(table.names)})")
        value = table.cell(key, row, top)
        for step in column.removeprefix(top).split(".")[1:]:
            value = value[step] if value.is_valid else value
        return _content(value, path, name)
    except (pa.ArrowException, KeyError, IndexError, OSError, UnicodeDecodeError) as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            raise  # the system's; what pyarrow itself finds wrong with a file has no number
        raise MediaError(
            f"{name}: not a table that can be read, or a damaged one ({_line(exc)}); make it again"
        ) from exc


def open_table(path: Path) -> ArrowTable | ParquetTable:
    """Opens an Arrow file or stream (memory-mapped), or a Parquet file.

    Raises:
        pyarrow.ArrowException: It is none, or damaged.
        OSError: It cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(6)
    return ParquetTable(path) if head[:4] == b"PAR1" else ArrowTable(path, whole=head == b"ARROW1")


class ArrowTable:
    """A memory-mapped Arrow file."""

    def __init__(self, path: Path, *, whole: bool) -> None:
        import pyarrow as pa

        mapped = pa.memory_map(str(path))
        if whole:
            reader = pa.ipc.open_file(mapped)
            self.batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        else:
            reader = pa.ipc.open_stream(mapped)
            self.batches = list(reader)
        self.schema = reader.schema
        self.names = list(self.schema.names)
        self.ends: list[int] = []
        for batch in self.batches:
            self.ends.append(batch.num_rows + (self.ends[-1] if self.ends else 0))
        self.num_rows = self.ends[-1] if self.ends else 0
        self._valid: set[tuple[int, str]] = set()

    def cell(self, _key: Any, row: int, column: str) -> Any:
        """A cell, as pyarrow's scalar."""
        number = bisect_right(self.ends, row)
        values = self.batches[number].column(self.names.index(column))
        if (number, column) not in self._valid:
            values.validate(full=True)  # offsets of a damaged file may point anywhere in memory
            self._valid.add((number, column))
        return values[row - self.ends[number] + len(values)]


class ParquetTable:
    """A Parquet file, whose row groups are decoded column by column."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(pa.memory_map(str(path)))
        self.schema = self._file.schema_arrow
        self.names = list(self.schema.names)
        metadata = self._file.metadata
        self.num_rows = metadata.num_rows
        self.ends: list[int] = []
        for number in range(metadata.num_row_groups):
            self.ends.append(metadata.row_group(number).num_rows + (self.ends[-1] if self.ends else 0))

    def cell(self, key: Any, row: int, column: str) -> Any:
        """A cell, as pyarrow's scalar."""
        number = bisect_right(self.ends, row)

        def decode() -> Any:
            return self._file.read_row_group(number, columns=[column], use_threads=False).column(0)

        values = _files().get((key, number, column), decode, OPEN_ROW_GROUPS)
        return values[row - (self.ends[number - 1] if number else 0)]


def _content(value: Any, path: Path, name: str) -> memoryview | Path:
    import pyarrow as pa

    if value.is_valid and pa.types.is_struct(value.type):
        names = {field.name for field in value.type}
        inner = value["bytes"] if "bytes" in names else None
        place = value["path"] if "path" in names else None
        if (inner is None or not inner.is_valid) and place is not None and place.is_valid:
            return _beside(path, str(place.as_py()), name)
        value = inner
    if value is None or not value.is_valid:
        raise MediaError(f"{name}: the cell is empty; leave this row out")
    kind = value.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _beside(path, value.as_py(), name)
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)):
        raise MediaError(f"{name}: expected the bytes of a media file, but the column is of type {kind}")
    return memoryview(value.as_buffer())


def _beside(table: Path, written: str, name: str) -> Path:
    """The file that a cell names; a table from elsewhere does not choose which of this machine's files are read."""
    folder = os.path.abspath(table.parent)
    found = os.path.normpath(os.path.join(folder, written))
    if not found.startswith(os.path.join(folder, "")):
        raise MediaError(
            f"{name}: the cell names the file {written!r:.200}, which lies outside the table's folder; put the file's "
            "bytes into the table, or name the file itself as `path`"
        )
    return Path(found)


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:200]
