"""Which files list the examples of a part, and in which state they are."""

from __future__ import annotations

import os
from pathlib import Path

from speechlmm_core.data.examples import Examples
from speechlmm_core.data.index.listed import in_threads
from speechlmm_core.data.index.state import FileState
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import DatasetConfig

TABLES = frozenset(
    {".arrow", ".csv", ".json", ".jsonl", ".gz", ".lst", ".parquet", ".srt", ".trn", ".tsv", ".txt", ".xml", ".yaml"}
)
"""Endings of files that may list examples, where a reader does not tell."""
DEPTH = 3
HASHED_BYTES = 256 << 20
"""Larger files are told apart by size and time alone: they hold media, which have hashes of their own."""


def source_states(examples: Examples, reader: DatasetConfig, base: Path) -> tuple[FileState, ...]:
    """The files that list the examples, as they are.

    Raises:
        DataError: One cannot be read.
    """
    paths = list(examples.sources) or _tables(reader, base)
    return tuple(in_threads(_state, dict.fromkeys(Path(path) for path in paths)))


def _state(path: Path) -> FileState:
    try:
        return FileState.of(path, hashed=path.stat().st_size <= HASHED_BYTES)
    except OSError as exc:
        raise DataError(f"cannot read {str(path)!r}: {exc.strerror or exc}") from exc


def _tables(reader: DatasetConfig, base: Path) -> list[Path]:
    named = getattr(reader, "path", None)
    if not isinstance(named, str) or not named:
        return []
    root = base / Path(named).expanduser()
    if root.is_file():
        return [root]
    found: list[Path] = []
    level = [root]
    for _ in range(DEPTH):
        below: list[Path] = []
        for folder in level:
            try:
                with os.scandir(folder) as entries:
                    ordered = sorted(entries, key=lambda one: one.name)
            except OSError:
                continue
            found += [Path(one.path) for one in ordered if one.is_file() and Path(one.name).suffix in TABLES]
            below += [Path(one.path) for one in ordered if one.is_dir() and not one.name.endswith(".index")]
        level = below
    return found
