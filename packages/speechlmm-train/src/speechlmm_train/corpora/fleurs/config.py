"""Configuration of the `fleurs` dataset. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_train.corpora.config import LayoutDatasetConfig, Strings
from speechlmm_train.corpora.fleurs.reader import read_fleurs
from speechlmm_train.corpora.layout import Layout
from speechlmm_train.corpora.rows import Rows


class FleursDatasetConfig(LayoutDatasetConfig):
    """FLEURS (Conneau et al., 2022): a table a language and partition; sentences have one number in all languages.

    Columns: `id`, `sentence` (its number), `raw_text` (as written), `text` (in small letters, without punctuation),
    `num_samples`, `gender`, `audio`, and, where a target language is asked for, `translation` and `raw_translation`.
    Sentences that nobody read in the target language are left out, as there is no translation of them.
    """

    type: Literal["fleurs"] = "fleurs"
    files: Strings = ("{source_language}/{partition}.tsv", "data/{source_language}/{partition}.tsv")
    """Templates of the tables."""
    audio: str = "{folder}/audio/{partition}/{file}"
    """Template of a recording's file."""

    def records(self, base: Path, selection: Selection = EVERYTHING) -> Rows:
        """Opens a part of the corpus.

        Raises:
            DataError: Files are missing, or lines are wrong: all are counted, the first are listed.
        """
        root = self.root(base)
        return read_fleurs(self, root, self.layout(), selection)

    def layout(self) -> Layout:
        """Where its files lie."""
        return Layout(self.files, self.language_names)
