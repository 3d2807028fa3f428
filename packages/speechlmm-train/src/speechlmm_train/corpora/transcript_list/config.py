"""Configuration of the `transcript_list` dataset. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_train.corpora.config import LayoutDatasetConfig, Strings
from speechlmm_train.corpora.transcript_list.reader import TranscriptList


class TranscriptListDatasetConfig(LayoutDatasetConfig):
    """Lists of transcripts with the audio in files beside them, as LibriSpeech and MLS have them.

    A line is the name of an utterance, a separator, and its transcript. Columns: `id`, `text`, `folder` (the list's),
    the parts of the name that `id_parts` names, what the list's path tells, and `audio`.
    """

    type: Literal["transcript_list"] = "transcript_list"
    files: Strings = ("{partition}/*/*/*.trans.txt",)
    """Templates of the lists."""
    separator: Annotated[str, Field(min_length=1)] = " "
    """What stands between name and transcript."""
    id_parts: tuple[str, ...] = ()
    """Names of the columns that a name's parts become."""
    id_separator: Annotated[str, Field(min_length=1)] = "-"
    """What stands between the parts of a name."""
    audio: str = "{folder}/{id}"
    """Template of an utterance's audio file without its extension."""
    extensions: Strings = (".flac", ".wav", ".opus", ".ogg", ".mp3")
    """Extensions of audio files; the first that the first utterance of a list has is the list's."""

    def records(self, base: Path, selection: Selection = EVERYTHING) -> TranscriptList:
        """Opens the lists of a part of the corpus.

        Raises:
            DataError: There are none, or lines are wrong: all are counted, the first are listed.
        """
        root = self.root(base)
        return TranscriptList(self, str(root), self.layout().find(root, selection))
