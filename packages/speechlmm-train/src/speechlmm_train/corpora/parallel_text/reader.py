"""Reads parallel text in either direction. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechlmm_core.errors import DataError
from speechlmm_train.corpora.layout import LANGUAGES, TOLD, Found, fill
from speechlmm_train.corpora.lines import AlignedLines

if TYPE_CHECKING:
    from speechlmm_train.corpora.parallel_text.config import ParallelTextDatasetConfig


class ParallelText:
    """The sentence pairs of some files; implements the `Records` protocol.

    Args:
        config: How the files are read.
        root: The corpus' root.
        files: The files of sentences, or the tables.
        turned: Whether what the files call the target is asked for as the source.

    Raises:
        DataError: A file is missing, or two that belong together differ in their number of lines.
    """

    def __init__(
        self, config: ParallelTextDatasetConfig, root: str, files: Sequence[Found], *, turned: bool = False
    ) -> None:
        self.config = config
        self.files = list(files)
        self.turned = turned
        self._root = root
        columns = {"source": [found.path for found in files]}
        if not config.table:
            columns["target"] = [
                fill("translations", config.translations, {**found.told, "stem": os.path.splitext(found.path)[0]})
                for found in files
            ]
        self._lines = AlignedLines(columns)
        self.columns: Sequence[str] = (
            "id",
            "source",
            "target",
            *(name for name in config.table if name not in ("source", "target")),
        )

    def __len__(self) -> int:
        return len(self._lines)

    def record(self, index: int) -> Mapping[str, str]:
        """A sentence and its translation.

        Raises:
            DataError: A table's line has other columns.
        """
        row = self._lines.row(index)
        if self.config.table:
            cells = row["source"].split("\t")
            if len(cells) != len(self.config.table):
                raise DataError(
                    f"expected {len(self.config.table)} columns ({', '.join(self.config.table)}) between tabs, "
                    f"got {len(cells)}: {row['source']!r:.80}"
                )
            row = dict(zip(self.config.table, cells, strict=True))
        if self.turned:
            row["source"], row["target"] = row["target"], row["source"]
        return {**row, "id": f"{os.path.basename(self.place(index))}"}

    def place(self, index: int) -> str:
        """The file and line of a pair."""
        return self._lines.place(index)

    def root(self, index: int) -> str:
        """The corpus' root."""
        return self._root

    def constants(self, index: int) -> Mapping[str, str]:
        """What the file's path tells, in the direction that is asked for."""
        told = {name: value for name, value in self.files[self._lines.file(index)].told.items() if name in TOLD}
        if self.turned and told.keys() >= set(LANGUAGES):
            told["source_language"], told["target_language"] = told["target_language"], told["source_language"]
        return told

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files that say which pairs there are."""
        return tuple(Path(path) for lines in self._lines.lines.values() for path in lines.paths)
