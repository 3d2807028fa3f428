"""Configuration of the `segment_list` dataset. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_train.corpora.config import LayoutDatasetConfig, Strings
from speechlmm_train.corpora.layout import Found
from speechlmm_train.corpora.segment_list.reader import SegmentList


class SegmentListDatasetConfig(LayoutDatasetConfig):
    """Segments of long recordings, with their texts in files of as many lines, as MuST-C and Europarl-ST have them.

    Columns: `id`, `folder` (the list's), `wav` (the recording's name), `audio`, `start`, `end` (seconds), `speaker`,
    and each of `texts`.
    """

    type: Literal["segment_list"] = "segment_list"
    files: Strings = ("{source_language}-{target_language}/data/{partition}/txt/{partition}.yaml",)
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
        lists = self.layout().find(root, selection)
        if "target" in self.texts and "target" not in self.columns.values():
            self._refuse_repeats(lists)
        return SegmentList(self, str(root), lists)

    def _refuse_repeats(self, lists: Sequence[Found]) -> None:
        """Makes sure that no recording is read once for each language that it is translated into.

        Raises:
            DataError: Lists of several target languages would be read, of which none is used.
        """
        targets: dict[tuple[str | None, str | None], list[str]] = {}
        for found in lists:
            key = found.told.get("partition"), found.told.get("source_language")
            targets.setdefault(key, []).append(found.told.get("target_language", ""))
        for (_, source), several in targets.items():
            if len(several) > 1:
                pairs = ", ".join(f"{source}-{target}" for target in several)
                raise DataError(f"the same recordings are in {pairs}; name one of them under `languages`")
