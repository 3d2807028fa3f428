"""Configuration of the `nxt` dataset. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_train.corpora.config import LayoutDatasetConfig, Strings
from speechlmm_train.corpora.nxt.reader import read_meetings
from speechlmm_train.corpora.rows import Rows


class NXTDatasetConfig(LayoutDatasetConfig):
    """Meetings with words, segments and summaries in XML, as AMI and ICSI have them.

    Columns of segments: `id`, `meeting`, `agent`, `channel`, `speaker`, `text`, `start`, `end`, `words`, `audio`.
    Columns of meetings: `id`, `meeting`, `text` (the summary), `transcript` (turns by time, each with its agent),
    `audio`.
    """

    type: Literal["nxt"] = "nxt"
    rows: Literal["segments", "meetings"] = "segments"
    """What a row is: a segment with words in it, or a meeting with a summary."""
    files: Strings = ("words/{meeting}.{agent}.words.xml",)
    """Templates of the words' files."""
    segments: str = "segments/{meeting}.{agent}.segments.xml"
    """Template of the segments' files, from the folder where the words' template starts."""
    start: str = "transcriber_start"
    """Attribute of a segment with its start in seconds."""
    end: str = "transcriber_end"
    """Attribute of a segment with its end in seconds."""
    summaries: Strings = ("abstractive/{meeting}.abssumm.xml",)
    """Templates of the summaries' files, from the same folder; the first that is there is read."""
    sections: Strings = ("abstract",)
    """Parts of a summary that are used (`abstract`, `actions`, `decisions`, `problems`)."""
    participants: str | None = "corpusResources/meetings.xml"
    """File with the channels and global names of each meeting's agents; null where segments name the participant."""
    audio: str = "{root}/{meeting}/audio/{meeting}.Mix-Headset.wav"
    """Template of a recording's file, with `{channel}` for that of a speaker's own microphone."""
    splits: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Meetings of each partition, by name or by what names begin with."""

    def partitions(self, base: Path) -> list[str]:
        """Names of the partitions of which there are meetings."""
        meetings = self.layout().values(self.root(base), "meeting")
        return [name for name, starts in self.splits.items() if any(one.startswith(starts) for one in meetings)]

    def records(self, base: Path, selection: Selection = EVERYTHING) -> Rows:
        """Opens a part of the corpus.

        Raises:
            DataError: There is no such partition, files are missing, or their XML is not what it must be.
        """
        return read_meetings(self, self.root(base), selection)
