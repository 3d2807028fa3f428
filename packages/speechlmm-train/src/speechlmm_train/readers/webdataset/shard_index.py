"""Where the members of a tar archive are, kept in the user's cache. Imports no torch."""

from __future__ import annotations

import logging
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.checkpoint.atomic import atomic_write
from speechlmm_core.errors import DataError
from speechlmm_core.media.part_file import PartFile
from speechlmm_core.media.source import MediaSource
from speechlmm_train.readers.file_cache import cached_file

logger = logging.getLogger(__name__)

VERSION = 1
PACKED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class ShardIndex:
    """The files in an archive, in its order."""

    offsets: NDArray[np.uint64]
    """(N,) first byte of each."""
    sizes: NDArray[np.uint64]
    """(N,) bytes of each."""
    names: NDArray[np.uint8]
    """All names in UTF-8, one after the other."""
    name_ends: NDArray[np.uint64]
    """(N,) where each name ends."""

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, number: int) -> str:
        """The name of a member."""
        start = int(self.name_ends[number - 1]) if number else 0
        return self.names[start : int(self.name_ends[number])].tobytes().decode("utf-8", "surrogateescape")


def shard_index(path: Path) -> ShardIndex:
    """The members of an archive: as they were found before, by its size and time, or by reading its headers.

    Raises:
        DataError: It is no archive, compressed or damaged, or holds what cannot be a sample's file.
        OSError: It cannot be read.
    """
    kept = cached_file(path, "shards", ".npz", version=VERSION)
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            return ShardIndex(*(arrays[name] for name in ShardIndex.__dataclass_fields__))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
        logger.info("cannot read %s, which is written anew: %s", kept, exc)
    found = scan(path, path.stat().st_size)
    try:
        with atomic_write(kept) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: getattr(found, name) for name in ShardIndex.__dataclass_fields__})
    except OSError as exc:
        logger.warning("cannot keep the index of %s in %s (it will be read again): %s", path, kept, exc)
    return found


def scan(path: Path, size: int) -> ShardIndex:
    """Reads the headers of an archive.

    Raises:
        DataError: It is no archive, compressed or damaged, or holds what cannot be a sample's file.
        OSError: It cannot be read.
    """
    offsets: list[int] = []
    sizes: list[int] = []
    names = bytearray()
    name_ends: list[int] = []
    with PartFile.of_file(path, 0, size) as file:
        if not size:
            raise DataError(f"{path}: the file is empty (0 bytes); copy or download it again")
        head = file.read(2)
        if head in PACKED:
            raise DataError(
                f"{path}: a compressed archive, whose members cannot be read at random; unpack it once "
                f"({PACKED[head]}), as media are compressed themselves"
            )
        file.seek(0)
        try:
            with tarfile.TarFile(fileobj=file) as archive:
                before = -1
                while (member := archive.next()) is not None:
                    # Else all of them are kept; typeshed does not tell of the attribute.
                    archive.members = []  # pyright: ignore[reportAttributeAccessIssue]
                    if archive.offset <= before or member.size < 0:
                        raise DataError(f"{path}: damaged: a header points back into the archive; make it again")
                    before = archive.offset
                    _check_member(path, member, size)
                    if member.isreg():
                        offsets.append(member.offset_data)
                        sizes.append(member.size)
                        names += member.name.encode("utf-8", "surrogateescape")
                        name_ends.append(len(names))
                end = archive.offset
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as exc:
            if isinstance(exc, DataError):
                raise
            raise DataError(f"{path}: not a tar archive, or a damaged one ({exc}); make it again") from exc
        _check_end(path, file, end, size)
    return ShardIndex(
        np.array(offsets, np.uint64),
        np.array(sizes, np.uint64),
        np.frombuffer(bytes(names), np.uint8),
        np.array(name_ends, np.uint64),
    )


def _check_member(path: Path, member: tarfile.TarInfo, size: int) -> None:
    shown = MediaSource(path, 0, 0, member=member.name)
    if member.issym() or member.islnk():
        raise DataError(f"{shown}: a link, which has no data of its own; pack the file itself (tar --dereference)")
    if member.isdir():
        return
    if not member.isreg() or member.issparse():
        raise DataError(f"{shown}: neither a file nor a folder but a device or the like; leave it out of the archive")
    if member.name.startswith("/") or ".." in member.name.split("/") or "\0" in member.name:
        raise DataError(f"{shown}: the name leads out of the archive; pack files by names relative to their folder")
    if member.offset_data + member.size > size:
        raise DataError(
            f"{shown}: truncated: it should end at byte {member.offset_data + member.size} and the archive has {size}; "
            "copy or download it again"
        )


def _check_end(path: Path, file: Any, end: int, size: int) -> None:
    """Python's module takes a damaged header for the end; a true end is a block of zeros."""
    file.seek(end)
    block = file.read(BLOCK)
    if len(block) == BLOCK and not any(block):
        return
    if end + BLOCK > size:
        raise DataError(f"{path}: truncated: it ends at byte {size}, without the mark of its end; copy it again")
    raise DataError(f"{path}: damaged: there is no header of a member at byte {end}; copy or make it again")
