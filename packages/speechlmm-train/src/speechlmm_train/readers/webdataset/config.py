"""Configuration of the `webdataset` dataset. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from speechlmm_core.interfaces.dataset import Selection
from speechlmm_train.readers.file_pattern import Names, find_partitions
from speechlmm_train.readers.record_reader import RecordReaderConfig

if TYPE_CHECKING:
    from speechlmm_core.data.records import Records


class WebDatasetConfig(RecordReaderConfig):
    """Shards in WebDataset's layout: tar archives whose members with one key (`000/a` of `000/a.flac`) are a sample.

    Each ending is a column: `json` an object (`json.speaker`), `txt` (`text`, `transcript`) a text, `cls` (`index`,
    `count`, `id`) a whole number, and any other, such as `flac`, where the member's bytes are: media are read from the
    archive, at random. `__key__` is the sample's key. Archives must not be compressed.
    """

    type: Literal["webdataset"] = "webdataset"
    own_columns: ClassVar[Mapping[str, str]] = {"id": "__key__"}
    path: str = ""
    """The shards' folder, or the shards themselves: `"shards/train-{000..123}.tar"`."""
    files: str | list[str] = "**/*.tar"
    """Shards below `path`: `"{partition}-*.tar"`, `"{partition}/{00..15}.tar"`. A range of numbers stands for each of
    them; a placeholder that the specification gives a value is replaced by it, any other fits every name."""
    partition_names: dict[str, str] = Field(default_factory=dict)
    """How file names call a partition, where otherwise than the specification: `{dev: validation}`."""
    language_names: dict[str, str] = Field(default_factory=dict)
    """How file names call a language: `{de: german}`."""

    @property
    def names(self) -> Names:
        """How the corpus writes partitions and languages."""
        return Names(self.partition_names, self.language_names)

    @property
    def templates(self) -> list[str]:
        """The templates of `files`."""
        return [self.files] if isinstance(self.files, str) else self.files

    def partitions(self, base: Path) -> list[str]:
        """Names of the partitions that the shards' names tell."""
        from speechlmm_train.readers.webdataset.reader import expand, place_of_shards

        folder, templates = place_of_shards(self.root(base), self.templates)
        return find_partitions(folder, expand(templates), self.names)

    def records(self, base: Path, selection: Selection) -> Records:
        """Opens the shards of a part of the corpus.

        Raises:
            DataError: What is wrong with them.
        """
        from speechlmm_train.readers.webdataset.reader import open_shards

        return open_shards(self, self.root(base), selection)
