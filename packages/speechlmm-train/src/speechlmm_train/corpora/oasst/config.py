"""Configuration of the `oasst` dataset. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_train.corpora.config import LayoutDatasetConfig, Strings
from speechlmm_train.corpora.oasst.reader import OasstThreads, read_threads


class OasstDatasetConfig(LayoutDatasetConfig):
    """OpenAssistant conversations (Köpf et al., 2023): threads of their message trees.

    Columns: `id` (the last message's), `tree`, `language`, `instruction` and `text` (the first message and its reply),
    `messages` (the whole thread), `quality` (the lowest that the assistant's messages were rated, from 0 to 1),
    `num_turns`.
    """

    type: Literal["oasst"] = "oasst"
    files: Strings = (
        "*oasst*_{partition}.trees.jsonl.gz",
        "*oasst*_{partition}.trees.jsonl",
    )
    """Templates of the files of trees."""
    threads: Literal["best", "all"] = "best"
    """The thread of the best ranked replies of each tree, or every thread down to its last reply."""
    turns: Literal["all", "first"] = "all"
    """Whole threads, or the first message with its reply."""
    roles: tuple[str, str] = ("prompter", "assistant")
    """What the corpus calls the user and the assistant."""

    def records(self, base: Path, selection: Selection = EVERYTHING) -> OasstThreads:
        """Opens a part of the corpus.

        Raises:
            DataError: Files are missing, or lines are wrong: all are counted, the first are listed.
        """
        root = self.root(base)
        found = self.layout().find(root, Selection(partition=selection.partition))
        return read_threads(self, root, found)
