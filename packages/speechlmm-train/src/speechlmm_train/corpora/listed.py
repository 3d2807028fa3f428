"""What readers have in common whose rows are the lines of lists. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from speechlmm_train.corpora.layout import TOLD, Found
from speechlmm_train.corpora.lines import Lines


class ListedRecords:
    """Rows that stand on the lines of lists; a reader adds `columns` and `record` to be `Records`.

    Args:
        root: The corpus' root.
        lists: The lists.

    Raises:
        DataError: A list cannot be read.
    """

    def __init__(self, root: str, lists: Sequence[Found]) -> None:
        self.lists = list(lists)
        self._root = root
        self._lines = Lines([found.path for found in lists])

    def __len__(self) -> int:
        return len(self._lines)

    def place(self, index: int) -> str:
        """The list and line of a row."""
        return self._lines.place(index)

    def root(self, index: int) -> str:
        """The corpus' root."""
        return self._root

    def constants(self, index: int) -> Mapping[str, str]:
        """What the list's path tells."""
        return {k: v for k, v in self.lists[self._lines.file(index)].told.items() if k in TOLD}

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files that say which rows there are."""
        return tuple(Path(found.path) for found in self.lists)
