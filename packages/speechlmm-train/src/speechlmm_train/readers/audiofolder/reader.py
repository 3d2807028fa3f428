"""Opens folders of media as records. Imports no torch."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from speechlmm_core.data.faults import Faults
from speechlmm_core.data.records import Records
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_train.readers.audiofolder.files import medium_of, walk
from speechlmm_train.readers.file_pattern import Names
from speechlmm_train.readers.record_reader import ConcatRecords

if TYPE_CHECKING:
    from speechlmm_train.readers.audiofolder.config import AudioFolderDatasetConfig

logger = logging.getLogger(__name__)

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CALLED = (
    frozenset({"train", "training"}),
    frozenset({"validation", "valid", "val", "dev"}),
    frozenset({"test", "testing", "eval", "evaluation"}),
)
"""What the same partition may be called."""
TEXTS = ("text", "transcription", "transcript", "sentence")
MAX_TEXT = 1 << 20
"""Bytes of a text beside a file."""


def partition_folders(root: Path, names: Names) -> list[str]:
    """Folders that are called as a partition is (`train-clean-100` as well), or that ``names`` says to be one."""
    if not root.is_dir():
        return []
    words = frozenset().union(*CALLED)
    return sorted(
        one.name
        for one in root.iterdir()
        if (one.name in names.partitions.values() or words & set(re.split(r"[^a-z]+", one.name.lower())))
        and one.is_dir()
    )


def open_folder(config: AudioFolderDatasetConfig, root: Path, selection: Selection) -> Records:
    """Opens a folder, or that of the selection's partition.

    Raises:
        DataError: There are no files, or what is wrong with its tables.
    """
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"the folder {str(root)!r} {reason}; check `path`")
    folder, told = _folder(config, root, selection.partition)
    try:
        files = list(walk(folder))
    except OSError as exc:
        raise DataError(f"{exc.filename or folder}: cannot be read: {exc.strerror or exc}") from exc
    media = {name for name in files if medium_of(name) is not None}
    tables = [name for name in files if PurePosixPath(name).name in TABLES]
    if tables:
        return _with_tables(folder, tables, media, told)
    above = [folder.parent / name for name in TABLES if folder != root and (folder.parent / name).is_file()]
    if above:
        return _with_tables(folder.parent, [above[0].name], {f"{folder.name}/{name}" for name in media}, told)
    if not media:
        raise DataError(f"{folder}: no audio or video files, and no metadata.csv; check `path`")
    return FolderFiles(folder, sorted(media), frozenset(files), config.text_ending, told)


def _folder(config: AudioFolderDatasetConfig, root: Path, partition: str | None) -> tuple[Path, dict[str, str]]:
    if partition is None:
        return root, {}
    name = config.names.written("partition", partition)
    if name != os.path.basename(name) or name in ("", ".", ".."):
        raise DataError(f"{name!r} is no folder's name; expected that of a partition")
    alike = next((names for names in CALLED if name in names), frozenset())
    for one in (name, *sorted(alike)):
        if (root / one).is_dir():
            return root / one, {"partition": partition}
    there = partition_folders(root, config.names)
    if there:
        raise DataError(f"{root}: no partition {name!r}; those that are there: {', '.join(there)}")
    return root, {}  # the layout does not tell partitions apart


def _with_tables(folder: Path, tables: list[str], media: set[str], told: dict[str, str]) -> Records:
    faults = Faults()
    parts: list[Records] = []
    named: set[str] = set()
    for name in tables:
        above = [
            other for other in tables if other != name and PurePosixPath(other).parent == PurePosixPath(name).parent
        ]
        if above:
            raise DataError(f"{folder / name}: the folder has {above[0]!r} as well; keep one table")
        parent = "" if "/" not in name else name.rpartition("/")[0] + "/"
        try:
            rows = FolderRows(folder, parent, _table(folder / name), told)
        except DataError as exc:
            faults.extend(exc)
            continue
        rows.check(media, named, faults)
        parts.append(rows)
    faults.raise_if_any()
    if left := len(media - named):
        logger.warning("%s: %d files are not named in metadata, and are left out", folder, left)
    records = ConcatRecords(parts, [folder / name for name in tables])
    if not len(records):
        raise DataError(
            f"{folder / tables[0]}: no rows of this partition" if told else f"{folder / tables[0]}: no rows"
        )
    return records


def _table(path: Path) -> Records:
    if path.suffix == ".parquet":
        from speechlmm_train.readers.file_pattern import FoundFile
        from speechlmm_train.readers.parquet.local import open_files

        return open_files([FoundFile(path, {})])
    from speechlmm_train.readers.table.config import TableDatasetConfig

    return TableDatasetConfig(path=str(path)).records(path.parent, EVERYTHING)


class FolderRows:
    """The rows of a table that names files."""

    columns: Sequence[str] = ()

    def __init__(self, folder: Path, parent: str, table: Records, told: Mapping[str, str]) -> None:
        self.folder, self.parent, self.table, self._told = folder, parent, table, told
        self._rows: Sequence[int] = range(len(table))

    def check(self, media: set[str], named: set[str], faults: Faults) -> None:
        """Makes sure that the files are there; rows whose files lie in another partition's folder are left out.

        Args:
            media: Files that are there.
            named: Takes those that are named.
            faults: Where faults go.
        """
        inside = next(iter(media)).partition("/")[0] + "/" if self._told and not self.parent and media else ""
        own = bool(inside) and all(name.startswith(inside) for name in media)
        rows: list[int] = []
        for index in range(len(self.table)):
            try:
                names = [self._relative(value) for _, value in _file_names(self.table.record(index))]
            except DataError as exc:
                faults.add(self.table.place(index), str(exc), order=index)
                continue
            missing = [name for name in names if name not in media and not (self.folder / name).is_file()]
            if missing:
                faults.add(self.table.place(index), f"there is no file {missing[0]!r} in {self.folder}", order=index)
            elif not own or any(name.startswith(inside) for name in names):
                rows.append(index)
            named.update(names)
        if len(rows) < len(self.table):
            self._rows = rows

    def _relative(self, value: Any) -> str:
        if not isinstance(value, str) or not value or "\0" in value:
            raise DataError(f"`file_name` must be a file's path, got {value!r:.80}")
        name = os.path.normpath(self.parent + value.replace("\\", "/"))
        if value.startswith(("/", "~")) or name.startswith(".."):
            raise DataError(f"`file_name` {value!r:.80} leads out of the folder")
        return name

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, index: int) -> Mapping[str, Any]:
        """A row, with where its files are.

        Raises:
            DataError: The table was changed.
        """
        row = self.table.record(self._rows[index])
        found: dict[str, Any] = {"audio": None, "video": None, "text": _text(row), **row}
        for input_name, value in _file_names(row):
            name = self._relative(value)
            kind = input_name or medium_of(name) or "audio"
            found[kind] = os.path.join(self.folder, name)
            if not input_name:
                found["file_name"] = name
        return found

    def place(self, index: int) -> str:
        """File and line of a row."""
        return self.table.place(self._rows[index])

    def root(self, index: int) -> str:
        """The folder."""
        return str(self.folder.absolute())

    def constants(self, index: int) -> Mapping[str, str]:
        """The partition."""
        return self._told


class FolderFiles:
    """Files without a table."""

    columns: Sequence[str] = ("file_name", "audio", "video", "text", "label")

    def __init__(
        self, folder: Path, media: list[str], files: frozenset[str], text_ending: str, told: Mapping[str, str]
    ) -> None:
        self.folder, self.media, self._told = folder, media, told
        self._ending = text_ending
        self._texts = files & {os.path.splitext(name)[0] + text_ending for name in media}

    def __len__(self) -> int:
        return len(self.media)

    def record(self, index: int) -> Mapping[str, Any]:
        """A file, with the text beside it and its folder's name.

        Raises:
            DataError: The text cannot be read.
        """
        name = self.media[index]
        found: dict[str, Any] = {"file_name": name, "audio": None, "video": None, "text": None, "label": None}
        found[medium_of(name) or "audio"] = os.path.join(self.folder, name)
        text = os.path.splitext(name)[0] + self._ending
        if text in self._texts:
            found["text"] = _read(self.folder / text)
        if "/" in name:
            found["label"] = name.split("/")[-2]
        return found

    def place(self, index: int) -> str:
        """The file."""
        return str(self.folder / self.media[index])

    def root(self, index: int) -> str:
        """The folder."""
        return str(self.folder.absolute())

    def constants(self, index: int) -> Mapping[str, str]:
        """The partition."""
        return self._told


def _file_names(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Inputs and file names in a row; the input is empty where the file's ending tells it."""
    found = [(column.removesuffix("file_name").rstrip("_"), row[column]) for column in row if _names_file(column)]
    if not found:
        raise DataError(f"a table of files needs a column `file_name` (columns: {', '.join(map(str, row))[:200]})")
    return [(name, value) for name, value in found if value is not None or not name]


def _names_file(column: str) -> bool:
    return column == "file_name" or column.endswith("_file_name")


def _text(row: Mapping[str, Any]) -> Any:
    return next((row[name] for name in TEXTS if row.get(name) is not None), None)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT + 1)
        if len(content) > MAX_TEXT:
            raise DataError(f"{path}: more than {MAX_TEXT >> 20} MiB, which is no transcript")
        if b"\0" in content:
            raise DataError(f"{path}: a NUL byte, which no text has; save it as UTF-8")
        return content.decode("utf-8-sig").strip()
    except OSError as exc:
        raise DataError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise DataError(f"{path}: not UTF-8 ({exc.reason} at byte {exc.start}); save it as UTF-8") from exc
