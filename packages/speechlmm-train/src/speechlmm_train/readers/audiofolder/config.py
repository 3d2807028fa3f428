"""Configuration of the `audiofolder` dataset. Imports no torch."""

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


class AudioFolderDatasetConfig(RecordReaderConfig):
    """Files in folders, as Hugging Face's `audiofolder` and `videofolder` lay them out.

    Partitions are folders (`train`, `validation`, `test` and what else they are called). A `metadata.csv`, `.jsonl` or
    `.parquet` names files in its column `file_name`, by the folder that it is in, and has further columns of any name.
    Without one every file is an example: the text beside it (`a.wav`, `a.txt`) is `text`, and the name of its folder
    `label`. Columns are `file_name`, `audio` or `video`, `text` (also where the table calls it `transcription`,
    `transcript` or `sentence`), and the table's own.
    """

    type: Literal["audiofolder"] = "audiofolder"
    own_columns: ClassVar[Mapping[str, str]] = {
        "id": "file_name",
        "audio": "audio",
        "video": "video",
        "text": "text",
    }
    path: str = ""
    """The folder; a relative path starts at the file that names it."""
    text_ending: str = ".txt"
    """Ending of the texts beside the files."""
    partition_names: dict[str, str] = Field(default_factory=dict)
    """How folders call a partition, where otherwise than the specification: `{dev: validation}`."""

    @property
    def names(self) -> Names:
        """How the corpus writes partitions."""
        return Names(self.partition_names)

    def partitions(self, base: Path) -> list[str]:
        """Folders that are called as partitions are, or as `partition_names` says."""
        from speechlmm_train.readers.audiofolder.reader import partition_folders

        return sorted(self.names.ours("partition", one) for one in partition_folders(self.root(base), self.names))

    def records(self, base: Path, selection: Selection) -> Records:
        """Opens the folder, or that of a partition.

        Raises:
            DataError: There are no files, or a table names some that are not there: all are counted, the first listed.
        """
        from speechlmm_train.readers.audiofolder.reader import open_folder

        return open_folder(self, self.root(base), selection)
