"""Configuration of the `spoken_squad` dataset. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_train.corpora.config import LayoutDatasetConfig, Strings
from speechlmm_train.corpora.rows import Rows
from speechlmm_train.corpora.spoken_squad.reader import read_spoken_squad


class SpokenSQuADDatasetConfig(LayoutDatasetConfig):
    """Spoken-SQuAD (Li et al., 2018): JSON as SQuAD's, and a recording of each sentence of a passage.

    A passage is heard as its sentences in order, so that a row holds a conversation: `messages` (the recordings and
    the question, then the answer), `id`, `question`, `answer`, `answers`, `context`, and `title`. A passage of a
    single recording has it as `audio` and no messages.
    """

    type: Literal["spoken_squad"] = "spoken_squad"
    files: Strings = ("spoken_{partition}-v1.1.json",)
    """Templates of the questions' files."""
    audio_folders: dict[str, tuple[str, ...]] = Field(
        default={
            "train": ("Spoken-SQuAD_audio/train_wav", "train_wav"),
            "test": ("Spoken-SQuAD_audio/dev_wav", "dev_wav"),
        }
    )
    """Folders of recordings by partition; the first that is there is used."""
    extension: str = ".wav"
    """Extension of the recordings."""

    def records(self, base: Path, selection: Selection = EVERYTHING) -> Rows:
        """Opens a part of the corpus.

        Raises:
            DataError: Files are missing, or are not what they must be.
        """
        root = self.root(base)
        return read_spoken_squad(self, root, self.layout().find(root, selection))
