"""The states of the files that list examples, where there are too many for the header. Imports no torch.

A corpus with a text file for each recording has as many of them as examples. Their states stand in a table beside the
columns; a look at their sizes and times, in several threads, tells on opening whether one has changed.

Shapes: F files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from speechlmm_core.data.index.layout import HASH_BYTES
from speechlmm_core.data.index.state import FileState

LISTED, PATHS = "listed.npy", "listed.txt"
STATE = np.dtype([("size", "<i8"), ("time", "<i8"), ("hash", np.uint8, HASH_BYTES)])
"""(F,) a row of the table: bytes, time in nanoseconds, BLAKE2b of the bytes (zeros where they are too many)."""
MANY = 1000
"""Files up to which the header has their states."""
THREADS = 8
PIECE = 256
One = TypeVar("One")
Other = TypeVar("Other")


def write_listed(folder: Path, states: Sequence[FileState]) -> None:
    """Writes the table.

    Raises:
        OSError: The disk is full.
    """
    table = np.zeros(len(states), STATE)
    table["size"], table["time"] = [one.size for one in states], [one.time for one in states]
    digests = b"".join(bytes.fromhex(one.digest) or bytes(HASH_BYTES) for one in states)
    table["hash"] = np.frombuffer(digests, np.uint8).reshape(-1, HASH_BYTES)
    with (folder / LISTED).open("wb") as file:
        np.save(file, table, allow_pickle=False)
    paths = [os.fsencode(one.path) for one in states]
    root = os.path.commonpath(paths).rstrip(b"/") + b"/"
    (folder / PATHS).write_bytes(b"\0".join([root, *(path.removeprefix(root) for path in paths)]))


def listed_change(folder: Path) -> str | None:
    """What happened to the files of a table since, the first of them; None for nothing.

    Raises:
        ValueError: The table is damaged.
        OSError: It cannot be read.
    """
    table = np.load(folder / LISTED, allow_pickle=False)
    root, *names = os.fsdecode((folder / PATHS).read_bytes()).split("\0")
    if table.dtype != STATE or len(table) != len(names):
        raise ValueError("a table of other files")
    paths = [root + name for name in names]
    found = np.array([state for piece in in_threads(_states, pieces(paths)) for state in piece], np.int64)  # (F, 2)
    differ = np.flatnonzero((found[:, 0] != table["size"]) | (found[:, 1] != table["time"]))
    changes = in_threads(lambda at: _state(paths[at], table[at]).changed(), differ.tolist())
    first = [change for change in changes if change is not None]
    if len(first) > 1:
        return f"{first[0]} (and so have {len(first) - 1:,} more of {len(paths):,} files that list its examples)"
    return first[0] if first else None


def states_change(states: Sequence[FileState]) -> str | None:
    """What happened to files since, the first of them; None for nothing."""
    return next((change for change in in_threads(FileState.changed, states) if change is not None), None)


def in_threads(function: Callable[[One], Other], items: Iterable[One]) -> list[Other]:
    """A function of each item; in several threads where it waits for a disk or a network."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))


def pieces(paths: Sequence[str]) -> list[Sequence[str]]:
    """Paths in lists that are long enough for a thread."""
    return [paths[at : at + PIECE] for at in range(0, len(paths), PIECE)]


def _states(paths: Sequence[str]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for path in paths:
        try:
            status = os.stat(path)
            found.append((status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):
            found.append((-1, -1))
    return found


def _state(path: str, row: np.void) -> FileState:
    digest = row["hash"].tobytes()
    return FileState(path, int(row["size"]), int(row["time"]), digest.hex() if any(digest) else "")
