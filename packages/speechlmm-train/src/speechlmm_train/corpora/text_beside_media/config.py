"""Configuration of the `text_beside_media` dataset. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_train.corpora.config import LayoutDatasetConfig, Strings
from speechlmm_train.corpora.text_beside_media.reader import TextBesideMedia


class TextBesideMediaDatasetConfig(LayoutDatasetConfig):
    """A text file beside each recording, as LibriTTS has it.

    Columns: `id` (the file's name up to its first dot), `text` (the file's content), `audio`, `folder`, the parts of
    the name that `id_parts` names, and what the path tells.
    """

    type: Literal["text_beside_media"] = "text_beside_media"
    files: Strings = ("{partition}/*/*/*.normalized.txt",)
    """Templates of the text files."""
    extension: str = ".wav"
    """Extension of the recordings."""
    id_parts: tuple[str, ...] = ()
    """Names of the columns that a name's parts become."""
    id_separator: Annotated[str, Field(min_length=1)] = "_"
    """What stands between the parts of a name."""

    def records(self, base: Path, selection: Selection = EVERYTHING) -> TextBesideMedia:
        """Opens a part of the corpus.

        Raises:
            DataError: There are no such files.
        """
        root = self.root(base)
        return TextBesideMedia(self, str(root), self.layout().find(root, selection))
