"""Configuration of the `parallel_text` dataset. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_train.corpora.config import LayoutDatasetConfig, Strings
from speechlmm_train.corpora.parallel_text.reader import ParallelText


class ParallelTextDatasetConfig(LayoutDatasetConfig):
    """Parallel text: pairs of files that correspond line by line, or tables of tab-separated columns.

    The files of a pair of languages serve both directions. Columns: `id`, `source`, `target`, and for tables those
    that `table` names.
    """

    type: Literal["parallel_text"] = "parallel_text"
    files: Strings = ("*.{source_language}-{target_language}.{source_language}",)
    """Templates of the files of sentences, or of the tables."""
    translations: str = "{stem}.{target_language}"
    """Template of the file of translations; `{stem}` is the path of the sentences without its last suffix."""
    table: tuple[str, ...] = ()
    """Columns of a table in order, `source` and `target` among them; empty for pairs of files."""

    @model_validator(mode="after")
    def _has_both(self) -> ParallelTextDatasetConfig:
        if self.table and not {"source", "target"} <= set(self.table):
            raise ValueError(f"`table` must name the columns 'source' and 'target', got {list(self.table)!r}")
        return self

    def records(self, base: Path, selection: Selection = EVERYTHING) -> ParallelText:
        """Opens a pair of languages in the direction that is asked for.

        Raises:
            DataError: There is no such pair, or its files do not correspond.
        """
        root = self.root(base)
        found = self.layout().search(root, selection)
        if not found:
            turned = replace(
                selection, source_language=selection.target_language, target_language=selection.source_language
            )
            if turned_found := self.layout().search(root, turned):
                return ParallelText(self, str(root), turned_found, turned=True)
            found = self.layout().find(root, selection)
        return ParallelText(self, str(root), found)
