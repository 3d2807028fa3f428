"""Configuration of the `lhotse` dataset. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from speechlmm_core.interfaces.dataset import Selection
from speechlmm_train.readers.file_pattern import Names
from speechlmm_train.readers.record_reader import RecordReaderConfig

if TYPE_CHECKING:
    from speechlmm_core.data.records import Records


class LhotseDatasetConfig(RecordReaderConfig):
    """What lhotse's corpus recipes and workflows write: cuts, recordings with supervisions, or Shar folders.

    Manifests are JSON (`.jsonl`, `.jsonl.gz`), which is read directly, line by line: lhotse itself is needed to make
    them (`speechlmm-train[lhotse]`). Columns are `id`, `audio`, `text`, `language`, `speaker`, `gender`, `duration`,
    `recording_id`, `cut_id`, `custom` and `alignment`. Recordings are files, or members of Shar's archives; commands
    are never run, and nothing is fetched from URLs.
    """

    type: Literal["lhotse"] = "lhotse"
    own_columns: ClassVar[Mapping[str, str]] = {
        "id": "id",
        "audio": "audio",
        "text": "text",
        "source_language": "language",
        "speaker": "speaker",
        "duration": "duration",
    }
    path: str = ""
    """A folder of manifests, a Shar folder, or a manifest of cuts; relative to the file that names it."""
    cuts: str | list[str] | None = None
    """Manifests of cuts below `path`: `"mycorpus_cuts_{partition}.jsonl.gz"`; by default any so named."""
    supervisions: str | None = None
    """Manifests of supervisions, where there are no cuts: `"mycorpus_supervisions_{partition}.jsonl.gz"`."""
    recordings: str | None = None
    """Manifests of their recordings: `"mycorpus_recordings_{partition}.jsonl.gz"`."""
    unit: Literal["supervision", "cut"] = "supervision"
    """What becomes an example: each supervision (its part of the cut's audio), or each cut with all its texts."""
    audio_root: str | None = None
    """Folder where relative paths of recordings start; by default the manifest's."""
    partition_names: dict[str, str] = Field(default_factory=dict)
    """How file names call a partition, where otherwise than the specification: `{dev: dev-clean}`."""
    language_names: dict[str, str] = Field(default_factory=dict)
    """How manifests call a language, where neither by its code nor by its English name: `{de: Deutsch}`."""

    @property
    def names(self) -> Names:
        """How the corpus writes partitions and languages."""
        return Names(self.partition_names, self.language_names)

    def partitions(self, base: Path) -> list[str]:
        """Names of the partitions that the manifests' or folders' names tell."""
        from speechlmm_train.readers.lhotse.reader import manifest_partitions

        return manifest_partitions(self, self.root(base))

    def records(self, base: Path, selection: Selection) -> Records:
        """Opens the manifests of a part of the corpus.

        Raises:
            DataError: What is wrong with them.
        """
        from speechlmm_train.readers.lhotse.reader import open_manifests

        return open_manifests(self, self.root(base), selection)
