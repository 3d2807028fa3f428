"""The header of a prepared part: what was prepared and how, and what its files must be. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speechlmm_core.data.index.layout import HEADER, VERSION, redo_hint
from speechlmm_core.data.index.state import FileState
from speechlmm_core.errors import DataError

CHECKED_BYTES = 1 << 20
"""Files up to this size are compared with their checksum whenever the index is opened; of larger ones, the size is."""


@dataclass(frozen=True)
class IndexHeader:
    """What is known of a part without looking at its columns."""

    name: str
    """What the part is called (`covost2/train/en-de`)."""
    digest: str
    """Of the reader's configuration and the selection."""
    total: int
    """Rows of the corpus."""
    kept: int
    """Rows that are used; they come first in the sorted columns."""
    num_media: int
    """Media of all rows."""
    check: str
    """How the media were checked: `fast` or `full`."""
    stamp: str
    """Digest of what the part holds."""
    spec: str | None = None
    """The specification it was prepared for, for messages."""
    destination: str = "train"
    """What the part was for."""
    limit: int | None = None
    """How many rows were read at most; None for all."""
    stored: bool = True
    """Whether the examples stand in the index; else the reader makes them."""
    root: str = ""
    """Beginning of the paths of media that stand in the index without it."""
    made_by: str = ""
    """Versions of the core and of the reader's distribution."""
    quarantined: dict[str, int] = field(default_factory=dict[str, int])
    """Rows that are left out, by reason."""
    flagged: dict[str, int] = field(default_factory=dict[str, int])
    """Rows that are used although they would be left out of training, by reason."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """Limits by which rows were put into quarantine."""
    choice: str = ""
    """Digest of the task and languages for which it is noted what each row lacks; empty where that is not noted."""
    lacks: tuple[str, ...] = ()
    """What rows lack for the task, as numbered in the column."""
    places: tuple[str, ...] = ()
    """Files that rows stand in."""
    sources: tuple[FileState, ...] = ()
    """Files that list the examples, as they were; where they are many, a table beside the columns has them."""
    files: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Size of each file of the index, and CRC-32 of small ones."""

    def write(self, folder: Path) -> None:
        """Writes the header beside the files, whose sizes and checksums it takes.

        Raises:
            OSError: The disk is full.
        """
        files = {path.name: _measured(path) for path in sorted(folder.iterdir()) if path.is_file()}
        content = {**asdict(self), "files": files}
        text = json.dumps({"version": VERSION, "checksum": _checksum(content), **content}, indent=1)
        (folder / HEADER).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> IndexHeader:
        """The header in a folder, whose files are what it says.

        Raises:
            DataError: The header or a file is missing or damaged, or was written by a newer version.
        """
        file = folder / HEADER
        try:
            content = json.loads(file.read_bytes())
            version, checksum = content.pop("version"), content.pop("checksum")
        except OSError as exc:
            raise damaged(file, exc.strerror or str(exc)) from exc
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as exc:
            raise damaged(file, "no header") from exc
        if version != VERSION:
            raise DataError(
                f"{folder}: an index of version {version!r}, and this release reads version {VERSION}; "
                "install the release that wrote it, or prepare the specification again with --redo"
            )
        if checksum != _checksum(content):
            raise damaged(file, "its checksum differs")
        content["sources"] = tuple(FileState(**state) for state in content["sources"])
        header = cls(**{**content, **{name: tuple(content.get(name, ())) for name in ("places", "lacks")}})
        for name, (size, crc) in header.files.items():
            header.check_file(folder / name, size, crc)
        return header

    @staticmethod
    def stamp_in(folder: Path) -> str | None:
        """The stamp of the part in a folder, at this moment; None where there is none."""
        try:
            return json.loads((folder / HEADER).read_bytes())["stamp"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def check_file(self, path: Path, size: int, crc: int) -> None:
        """Makes sure that a file of the index is as it was written.

        Raises:
            DataError: It is missing or damaged.
        """
        try:
            found = path.stat().st_size
            if found != size:
                raise damaged(path, f"{found} bytes, expected {size}", self.spec)
            if size <= CHECKED_BYTES and _measured(path)[1] != crc:
                raise damaged(path, "its checksum differs", self.spec)
        except OSError as exc:
            raise damaged(path, exc.strerror or str(exc), self.spec) from exc


def damaged(path: Path, why: str, spec: str | None = None) -> DataError:
    """The error of a file of the index that is not what it should be."""
    return DataError(f"{path}: damaged index ({why}); {redo_hint(spec)}")


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def _measured(path: Path) -> tuple[int, int]:
    size = path.stat().st_size
    crc = 0
    if size <= CHECKED_BYTES:
        with path.open("rb") as file:
            while block := file.read(CHECKED_BYTES):
                crc = zlib.crc32(block, crc)
    return size, crc
