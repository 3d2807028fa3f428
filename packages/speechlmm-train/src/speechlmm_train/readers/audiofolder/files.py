"""The media files below a folder. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

AUDIO = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".m4a", ".aac", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf"}
    | {".wma", ".amr", ".wv", ".ape", ".ac3", ".mka", ".weba"}
)
VIDEO = frozenset({".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv"})


def medium_of(name: str) -> str | None:
    """What a file is by its ending: `audio`, `video`, or None for neither."""
    ending = os.path.splitext(name)[1].lower()
    if ending in AUDIO:
        return "audio"
    return "video" if ending in VIDEO else None


def walk(folder: Path) -> Iterator[str]:
    """Files below a folder, relative to it, in the order of their names; what is hidden is passed over.

    Links to folders are followed, each folder once.

    Raises:
        OSError: A folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    yield from _walk(os.fspath(folder), "", seen)


def _walk(folder: str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        found = sorted((one.name, one.is_dir()) for one in entries if not one.name.startswith((".", "__")))
    for name, is_folder in found:
        if is_folder:
            yield from _walk(os.path.join(folder, name), f"{prefix}{name}/", seen)
        else:
            yield prefix + name
