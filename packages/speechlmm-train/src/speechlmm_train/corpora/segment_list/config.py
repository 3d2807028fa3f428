"""Configuration of the `segment_list` dataset. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_train.corpora.config import LayoutDatasetConfig
from speechlmm_train.corpora.segment_list.reader import SegmentList


class SegmentListDatasetConfig(LayoutDatasetConfig):
    """Segments of long recordings, with their texts in files of as many lines, as MuST-C and Europarl-ST have them.

    Columns: `id`, `folder` (the list's), `wav` (the recording's name), `audio`, `start`, `end` (seconds), `speaker`,
    and each of `texts`.
    """

    type: Literal["segment_list"] = "segment_list"
    files: tuple[str, ...] = ("{source_language}-{target_language}/data/{partition}/txt/{partition}.yaml",)
    """Templates of the lists of segments."""
    format: Literal["yaml", "columns"] = "yaml"
    """How a segment is written: a mapping of `wav`, `offset`, `duration` and `speaker_id` a line, or the columns
    recording, start and end."""
    texts: dict[str, str] = Field(
        default={
            "source": "{folder}/{partition}.{source_language}",
            "target": "{folder}/{partition}.{target_language}",
        }
    )
    """Templates of the files of texts, by column."""
    audio: str = "{folder}/../wav/{wav}"
    """Template of a recording's file, without its extension where `extensions` has any."""
    extensions: tuple[str, ...] = ()
    """Extensions of the recordings; the first that the first recording of a list has is the list's."""

    def records(self, base: Path, selection: Selection = EVERYTHING) -> SegmentList:
        """Opens the segments of a part of the corpus.

        Raises:
            DataError: There are none, or lists and texts do not correspond.
        """
        root = self.root(base)
        return SegmentList(self, str(root), self.layout().find(root, selection))
