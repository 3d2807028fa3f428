"""Writes that either happen whole or not at all: a temporary name beside the target, fsync, rename."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".saving"
"""Folder within an empty one that is being filled; a save that was killed leaves it."""


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside ``path``, which replaces it when the block ends without an error.

    Raises:
        OSError: The disk is full or read-only; what stood at ``path`` is still there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``, which takes its place when the block ends without an error.

    Raises:
        OSError: The disk is full or read-only; what stood at ``path`` is still there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        sync_all(temporary)
        _swap(temporary, target)
        sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sweep(path: Path | str) -> None:
    """Removes what writes of ``path`` left beside it when they were killed."""
    target = Path(path)
    left_over = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.(tmp|old)")
    # Where the target itself is missing, the folder that stepped aside may be all that there is.
    if target.exists():
        for entry in target.parent.iterdir():
            if left_over.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def _swap(new: Path, target: Path) -> None:
    """Puts a folder in the place of another, which is left under the new one's name or removed."""
    if not target.exists():
        os.replace(new, target)
        return
    if _exchange(new, target):
        return
    # A folder with content cannot be replaced in one call: the old one steps aside and comes back on failure.
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
    os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two paths in one step, where the system and the file system can (Linux's `renameat2`)."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    at_working_folder, exchange = -100, 2
    done = renameat2(at_working_folder, os.fsencode(one), at_working_folder, os.fsencode(other), exchange)
    return done == 0


def sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(path: Path) -> None:
    """Waits until a file, or a folder with all that is in it, is on the disk."""
    if path.is_dir():
        for entry in path.rglob("*"):
            # A link is an entry of its folder; where it leads is not ours, and may be nowhere.
            if not entry.is_symlink() and (entry.is_file() or entry.is_dir()):
                sync(entry)
    sync(path)
