"""Records that are in memory, for corpora that are small or must be read as a whole. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Rows:
    """Rows of a corpus with their places; implements the `Records` protocol."""

    columns: Sequence[str]
    """Names of the columns."""
    rows: Sequence[Mapping[str, Any]]
    """The rows."""
    places: Sequence[str]
    """Where each stands, as messages name it."""
    folder: str
    """Folder where relative paths of media start."""
    told: Sequence[Mapping[str, str]] = field(default_factory=tuple)
    """What each row's file tells; empty for nothing."""
    sources: Sequence[Path] = field(default_factory=tuple)
    """Files that say which rows there are."""
    finish: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    """Makes a row of what is kept of it, where all of it would take too much memory; a function of a module."""

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, index: int) -> Mapping[str, Any]:
        """A row."""
        row = self.rows[index]
        return row if self.finish is None else self.finish(row)

    def place(self, index: int) -> str:
        """Where a row stands."""
        return self.places[index]

    def root(self, index: int) -> str:
        """Folder where relative paths start."""
        return self.folder

    def constants(self, index: int) -> Mapping[str, str]:
        """What the row's file tells."""
        return self.told[index] if self.told else {}
