"""What is known of media from before: from the parts of an earlier index, and from a preparation that was interrupted.

Shapes: K records.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.index.header import IndexHeader
from speechlmm_core.data.index.layout import HASH_BYTES, HEADER, is_part_folder
from speechlmm_core.errors import DataError

logger = logging.getLogger(__name__)

RECORD = np.dtype(
    [
        ("key", "<u8"),
        ("measured", "<u8"),
        ("num_samples", "<i8"),
        ("sampling_rate", "<i4"),
        ("peak", "<f2"),
        ("clipped", "<f2"),
        ("hash", np.uint8, HASH_BYTES),
        ("checksum", "<u4"),
    ]
)
"""What was found of a medium: `key` says which file and part of it, in which state, `measured` which segment of it was
decoded (0 for none)."""
Records = NDArray[Any]


class Known:
    """Records by their keys."""

    def __init__(self, records: Records) -> None:
        self._by_key = records[np.argsort(records["key"], kind="stable")]
        decoded = records[records["measured"] != 0]
        self._by_measured = decoded[np.argsort(decoded["measured"], kind="stable")]

    def find(self, wanted: NDArray[np.uint64], *, decoded: bool) -> tuple[Records, NDArray[np.bool_]]:
        """The record of each key (K,), and whether there is one (K,)."""
        table, field = (self._by_measured, "measured") if decoded else (self._by_key, "key")
        if not len(table):
            return np.zeros(len(wanted), RECORD), np.zeros(len(wanted), bool)
        at = np.minimum(np.searchsorted(table[field], wanted), len(table) - 1)
        return table[at], table[field][at] == wanted


def records_of(folder: Path) -> Records:
    """What a part of an index knows; nothing where it is damaged."""
    try:
        header = IndexHeader.read(folder)
        column = {
            name: np.load(folder / f"{file}.npy", allow_pickle=False)
            for name, file in (
                ("key", "keys"),
                ("measured", "measured"),
                ("num_samples", "num_samples"),
                ("sampling_rate", "sampling_rates"),
                ("peak", "peaks"),
                ("clipped", "clipped"),
                ("hash", "hashes"),
            )
        }
        records = np.zeros(header.num_media, RECORD)
        for name, values in column.items():
            records[name] = values
    except (OSError, ValueError, EOFError, DataError) as exc:
        logger.warning("%s is not used, and what it holds is read again: %s", folder, exc)
        return np.zeros(0, RECORD)
    return records[records["hash"].any(axis=1)]


def parts_in(index_dir: Path) -> list[Path]:
    """The folders of an index' parts."""
    if not index_dir.is_dir():
        return []
    return sorted(one.parent for one in index_dir.glob(f"*/{HEADER}") if is_part_folder(one.parent.name))


class Journal:
    """A file that grows by what was found, so that a preparation that is killed goes on where it was.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = self._read()
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._handle, len(self.records) * RECORD.itemsize)

    def append(self, records: Records) -> None:
        """Adds records.

        Raises:
            OSError: The disk is full.
        """
        for record in records:
            record["checksum"] = _checksum(record)
        data = memoryview(records.tobytes())
        while data:
            data = data[os.write(self._handle, data) :]

    def close(self) -> None:
        """Closes the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def remove(self) -> None:
        """Removes the file: all that it holds stands in the index."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _read(self) -> Records:
        """The records up to the first that is damaged, as a crash of the machine may leave it."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return np.zeros(0, RECORD)
        records = np.frombuffer(data[: len(data) // RECORD.itemsize * RECORD.itemsize], RECORD)
        good = next((at for at, one in enumerate(records) if one["checksum"] != _checksum(one)), len(records))
        return records[:good].copy()


def _checksum(record: Any) -> int:
    return zlib.crc32(record.tobytes()[:-4])


def joined(parts: Iterable[Records]) -> Records:
    """Records in a row."""
    return np.concatenate([np.zeros(0, RECORD), *parts])
