"""Where the data of a medium are: a file, a part of one, or memory. Imports no torch.

Corpora keep media in files, but also in tar archives and shards (a byte range of a file) and in tables (a cell of an
Arrow or Parquet file). A content item says where with these keys, and whatever reads media reads a `MediaSource`.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from speechlmm_core.errors import MediaError
from speechlmm_core.media.part_file import PartFile

LOCATOR_KEYS = ("path", "offset", "size", "row", "column", "member", "bytes")
"""Keys of a content item that tell where its data are."""
PART_KEYS = frozenset({"offset", "size", "row", "column", "channel"})
"""Those of them that name a part, and the channel of audio that is meant."""
_PLACES = ("offset", "size", "row", "column")
SHOWN = 200
"""Characters of a member's name that messages show."""


@dataclass(frozen=True)
class MediaSource:
    """A file, or a part of one, whose bytes are what a media file holds; its text is what messages call it."""

    path: Path | None = None
    """The file; None for bytes in memory."""
    offset: int | None = None
    """First byte of a part of the file."""
    size: int | None = None
    """Bytes of the part."""
    row: int | None = None
    """Row of a table (Arrow or Parquet), from 0."""
    column: str | None = None
    """Column of the table that holds the bytes: binary, or an object of `bytes` and `path`."""
    member: str | None = None
    """What the part is called in its file, for messages."""
    data: bytes | None = field(default=None, repr=False)
    """Bytes in memory."""
    channel: int | None = None
    """The channel of audio that is meant, from 0; None for the average of all."""

    @property
    def whole(self) -> bool:
        """Whether it is a file of its own, which any library can open by its path."""
        return self.path is not None and self.offset is None and self.row is None

    def __str__(self) -> str:
        if self.path is None:
            return f"in-memory file {_plain(self.member)}" if self.member else "in-memory file"
        if self.member and not self.whole:
            return f"{self.path}:{_plain(self.member)}"
        if self.offset is not None:
            return f"{self.path} (bytes {self.offset} to {self.offset + (self.size or 0)})"
        return str(self.path) if self.row is None else f"{self.path} (row {self.row} of {self.column!r})"

    def identity(self) -> str:
        """What tells these data from all others: path, size and time of the file, and the part of it.

        Raises:
            OSError: The file is not there.
            ValueError: It is no file but bytes in memory, or its path none.
        """
        if self.path is None:
            raise ValueError("bytes in memory have no identity")
        status = self.path.stat()
        whole = f"{self.path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}"
        if self.whole:
            return whole
        return f"{whole}\0{self.offset}\0{self.size}\0{self.row}\0{self.column}"

    def check(self, kind: str) -> None:
        """Makes sure that there are data.

        Args:
            kind: What is expected, for messages: `an audio file`.

        Raises:
            MediaError: The file is missing, none, empty, or shorter than the part.
        """
        size = len(self.data or b"") if self.path is None else self._file_size(self.path, kind)
        if self.offset is not None and self.offset + (self.size or 0) > size:
            raise MediaError(
                f"{self}: truncated: it should end at byte {self.offset + (self.size or 0)} and the file has {size}; "
                "copy or download it again"
            )
        if not (size if self.offset is None else self.size):
            raise MediaError(f"{self}: the file is empty (0 bytes); copy or download it again")

    def _file_size(self, path: Path, kind: str) -> int:
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise MediaError(f"{path}: no such file; check the path") from exc
        except (OSError, ValueError) as exc:
            raise MediaError(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise MediaError(f"{path}: expected {kind if self.whole else 'a file'}, but this is {what}")
        return status.st_size

    def num_bytes(self) -> int:
        """Size of the data in bytes.

        Raises:
            MediaError: They cannot be read.
            OSError: As well.
        """
        if self.whole and self.path is not None:
            return self.path.stat().st_size
        with self.open() as file:
            return file.seek(0, io.SEEK_END)

    def open(self) -> BinaryIO:
        """Opens the data for reading, from the start; the caller closes the file.

        Raises:
            MediaError: A cell holds no bytes, or its table is damaged.
            OSError: The file cannot be opened.
        """
        if self.path is None:
            return PartFile.of_bytes(self.data or b"", name=self.member)
        if self.row is not None:
            from speechlmm_core.media.table_cell import cell_bytes

            found = cell_bytes(self.path, self.row, self.column or "", name=str(self))
            return found.open("rb") if isinstance(found, Path) else PartFile.of_bytes(found, name=self.member)
        if self.offset is not None:
            return PartFile.of_file(self.path, self.offset, self.size or 0, name=self.member)
        return self.path.open("rb")

    def read(self) -> bytes:
        """All of the data.

        Raises:
            MediaError: They cannot be read.
        """
        try:
            with self.open() as file:
                return file.read()
        except OSError as exc:
            raise MediaError(f"{self}: cannot be read: {exc.strerror or exc}") from exc


def as_source(path: str | Path | MediaSource) -> MediaSource:
    """A path as a source; ``~`` is the home folder.

    Raises:
        MediaError: There is no such user.
    """
    if isinstance(path, MediaSource):
        return path
    try:
        return MediaSource(Path(path).expanduser())
    except RuntimeError as exc:
        raise MediaError(f"{path}: there is no such user; write the folder in full") from exc


def item_source(item: Mapping[str, Any], kind: str = "audio") -> MediaSource | None:
    """The source that a content item names; None where it holds its samples as an `array`.

    Args:
        item: The content item.
        kind: What it is, for messages.

    Raises:
        MediaError: It names none, or several.
    """
    named = [key for key in ("path", "array", "bytes") if item.get(key) is not None]
    if len(named) != 1:
        raise MediaError(
            f"expected {'an' if kind[0] in 'aeiou' else 'a'} {kind} item with either a `path` or an `array` (or the "
            f"`bytes` of a file), got the keys {sorted(item)!r}"
        )
    if named != ["path"] and (beside := [key for key in _PLACES if item.get(key) is not None]):
        raise MediaError(
            f"expected the {named[0]} of {kind} whole, got {', '.join(f'`{key}`' for key in beside)} beside it, which "
            "name a part of a file"
        )
    if named == ["array"]:
        return None
    member = item.get("member")
    if member is not None and not isinstance(member, str):
        raise MediaError(f"expected the `member` of {kind} to be the name of a part of its file, got {member!r:.80}")
    if named == ["bytes"]:
        if not isinstance(item["bytes"], bytes | bytearray | memoryview):
            raise MediaError(f"expected the `bytes` of {kind} to be those of a file, got {item['bytes']!r:.80}")
        return MediaSource(data=bytes(item["bytes"]), member=member, channel=_channel(item))
    path = item["path"]
    if not isinstance(path, str | Path) or not str(path):
        raise MediaError(f"expected the `path` of {kind} to be a file's path, got {path!r:.80}")
    whole = as_source(path)
    if not item.keys() & PART_KEYS:
        return whole
    if slip := locator_fault(item):
        raise MediaError(f"{whole}: {slip}")
    places = (item.get(key) for key in _PLACES)
    return MediaSource(whole.path, *places, member=member, channel=item.get("channel"))


def locator_fault(item: Mapping[str, Any]) -> str | None:
    """What is wrong with the keys of a content item that name a part of its file; None where nothing is."""
    offset, size, row, column = (item.get(key) for key in _PLACES)
    for key, value in (("offset", offset), ("size", size), ("row", row), ("channel", item.get("channel"))):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63):
            return f"`{key}` must be a whole number, 0 or more, got {value!r:.80}"
    if column is not None and (not isinstance(column, str) or not column):
        return f"`column` must be the name of a table's column, got {column!r:.80}"
    if (offset is None) != (size is None):
        return "a part of a file needs both its `offset` and its `size` in bytes"
    if (row is None) != (column is None):
        return "a cell of a table needs both its `row` and its `column`"
    if offset is not None and row is not None:
        return "`offset` and `row` exclude each other: data are a part of a file, or a cell of a table"
    return None


def file_source(item: Mapping[str, Any]) -> MediaSource | None:
    """The file, or the part of one, that a content item names; None where it names none, or wrongly."""
    try:
        source = item_source(item)
    except MediaError:
        return None
    return None if source is None or source.path is None else source


def item_name(item: Mapping[str, Any]) -> str:
    """What messages call the data of a content item: its file, with the member or the cell."""
    try:
        source = item_source(item)
    except MediaError:
        return str(item.get("path", f"in-memory {item.get('type', 'medium')}"))
    return f"in-memory {item.get('type', 'audio')}" if source is None else str(source)


def _channel(item: Mapping[str, Any]) -> int | None:
    if slip := locator_fault(item):
        raise MediaError(slip)
    return item.get("channel")


def _plain(name: str) -> str:
    """A member's name as it may stand on one line: archives may hold any."""
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in name[:SHOWN])
    return shown + "…" * (len(name) > SHOWN)
