"""Configuration of the `lrs2` dataset. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_train.corpora.config import LayoutDatasetConfig, Strings
from speechlmm_train.corpora.lrs2.reader import LRS2Clips


class LRS2DatasetConfig(LayoutDatasetConfig):
    """LRS2 (Afouras et al., 2018): lists of clips, each an `.mp4` with a `.txt` beside it.

    Columns: `id`, `text`, `clip` (the path of the `.mp4`), `confidence`, and `words` with their seconds where the text
    file gives them.
    """

    type: Literal["lrs2"] = "lrs2"
    files: Strings = ("{partition}.txt", "mvlrs_v1/{partition}.txt")
    """Templates of the lists of clips."""
    folders: Strings = ("main", "pretrain")
    """Folders of clips beside a list; that of the partition's name where there is one, else the first."""

    def records(self, base: Path, selection: Selection = EVERYTHING) -> LRS2Clips:
        """Opens a part of the corpus.

        Raises:
            DataError: There is no such list, or its lines are wrong.
        """
        root = self.root(base)
        return LRS2Clips(self, str(root), self.layout().find(root, selection))
