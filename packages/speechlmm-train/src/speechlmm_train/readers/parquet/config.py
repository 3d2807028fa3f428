"""Configuration of the `parquet` dataset. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from speechlmm_core.interfaces.dataset import Selection
from speechlmm_train.readers.file_pattern import Names
from speechlmm_train.readers.record_reader import RecordReaderConfig

if TYPE_CHECKING:
    from speechlmm_core.data.records import Records


class ParquetDatasetConfig(RecordReaderConfig):
    """Parquet and Arrow files, what `datasets` saved by `save_to_disk`, and datasets of the Hugging Face hub.

    Columns of bytes, and Hugging Face's `Audio` and `Video` columns, are media, as paths or as bytes: bytes are read
    from the Arrow file when they are asked for. Parquet is converted to Arrow once, in the user's cache, as only Arrow
    can be read at random. Of a class label its name is given. `audio.member` is the path that stands in the column.
    """

    type: Literal["parquet"] = "parquet"
    path: str = ""
    """A file, a folder with files, or one that `save_to_disk` wrote; relative to the file that names it."""
    files: str | list[str] = ""
    """Files below `path`: `"{language}/{partition}-*.parquet"`. By default those that are named as on the hub, such as
    `data/train-00000-of-00004.parquet` and `train/0000.parquet`; where there are none, all files."""
    hub: str | None = None
    """Name of a dataset on the hub (`google/fleurs`), instead of `path`."""
    subset: str | None = None
    """Its subset (also called configuration); placeholders stand for the selection: `"{source_language}"`."""
    revision: str | None = None
    """Its branch, tag or commit."""
    streaming: bool = False
    """Reads the hub's records one after the other, only as many as are asked for, and keeps them in the user's cache
    with their media, instead of downloading all files. An interrupted run goes on where it was."""
    partition_names: dict[str, str] = Field(default_factory=dict)
    """How files, or the hub, call a partition, where otherwise than the specification: `{dev: validation}`."""
    language_names: dict[str, str] = Field(default_factory=dict)
    """How files, or the subset's name, call a language: `{de: de_de}`."""

    @property
    def names(self) -> Names:
        """How the corpus writes partitions and languages."""
        return Names(self.partition_names, self.language_names)

    @property
    def templates(self) -> list[str]:
        """The templates of `files`."""
        return [self.files] if isinstance(self.files, str) and self.files else list(self.files)

    def partitions(self, base: Path) -> list[str] | None:
        """Names of the partitions: those saved, or told by the files' names; the hub tells when it is read."""
        from speechlmm_train.readers.parquet.local import local_partitions

        return None if self.hub is not None else local_partitions(self, self.root(base))

    def records(self, base: Path, selection: Selection) -> Records:
        """Opens a part of the corpus.

        Raises:
            DataError: What is wrong with the files, or why the hub does not give them.
        """
        if self.hub is not None:
            from speechlmm_train.readers.parquet.hub import open_hub

            return open_hub(self, self.hub, selection)
        from speechlmm_train.readers.parquet.local import open_local

        return open_local(self, self.root(base), selection)
