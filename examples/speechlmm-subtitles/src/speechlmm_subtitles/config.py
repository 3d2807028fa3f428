"""Configuration of the `subtitles.srt` dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from speechlmm_core.data.records import RecordDatasetConfig
from speechlmm_core.interfaces.dataset import Selection

if TYPE_CHECKING:
    from speechlmm_core.data.records import Records


class SubtitlesDatasetConfig(RecordDatasetConfig):
    """Recordings with subtitles beside them; partitions are folders."""

    type: Literal["subtitles.srt"] = "subtitles.srt"
    columns: dict[str, str | None] = Field(
        default_factory=lambda: {
            "id": "id",
            "audio": "recording",
            "audio.start": "start",
            "audio.end": "end",
            "text": "text",
        }
    )
    """Source by field of the example; the columns are `id`, `recording`, `start`, `end` and `text`."""
    ending: str = ".wav"
    """Ending of the recordings."""

    def partitions(self, base: Path) -> list[str]:
        """Names of the folders."""
        root = base / self.path
        return sorted(one.name for one in root.iterdir() if one.is_dir()) if root.is_dir() else []

    def records(self, base: Path, selection: Selection) -> Records:
        """Opens the subtitles of a partition.

        Raises:
            DataError: There are none, or some are damaged.
        """
        # Imported here, so that listing and validating specifications stays fast.
        from speechlmm_subtitles.reader import SubtitleRecords

        return SubtitleRecords(base / self.path / (selection.partition or ""), self.ending, selection.partition)
