"""Configuration of the `table` dataset. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from speechlmm_core.interfaces.dataset import Selection
from speechlmm_train.readers.file_pattern import Names, find_partitions
from speechlmm_train.readers.record_reader import RecordReaderConfig

if TYPE_CHECKING:
    from speechlmm_core.data.records import Records

Format = Literal["csv", "tsv", "json", "jsonl", "txt"]


class TableDatasetConfig(RecordReaderConfig):
    """Tables: CSV, TSV, JSON, JSONL or plain lines, each of which may be compressed (`.gz`).

    A row is a record, and `columns` says what becomes of it. Of tables by lines only the places of the rows stay in
    memory. Relative paths of media start at the table's folder, or at `media_root`.
    """

    type: Literal["table"] = "table"
    path: str = ""
    """The corpus' folder, or the table itself; a relative path starts at the file that names it."""
    files: str | list[str] = ""
    """Tables below `path`: `"{language}/{partition}.tsv"`. A placeholder that the specification gives a value is
    replaced by it; any other fits every name and tells its value (for `columns` as well). `*` and `**` fit all."""
    format: Format | None = None
    """What the tables are; by default by their ending."""
    column_names: list[str] | None = None
    """Columns of tables whose first line does not name them."""
    header: bool | None = None
    """Whether the first line names columns (or is passed over, with `column_names`); by default if none are given."""
    delimiter: str | None = None
    """What stands between two columns: a comma in CSV, a tab in TSV, nothing in plain lines."""
    quoting: bool | None = None
    """Whether `"` quotes; by default in CSV only. Without it the last column takes the rest of the line if
    `column_names` are given."""
    encoding: str = "utf-8"
    """Encoding of the text: any that has ASCII as it is."""
    record_path: str = ""
    """Where in JSON the rows are: `data.paragraphs.qas`. Each list on the way is gone through, `*` through the values
    of an object. A row has the fields of the innermost, `key` in an object, those of the objects around it by their
    name (`paragraphs.context`), and those of the outermost by their own."""
    where: dict[str, str | list[str]] = Field(default_factory=dict)
    """Only rows with this value, or one of these, in a column: `{status: correct}`."""
    parts: dict[str, str] = Field(default_factory=dict)
    """Further columns from what a column is made up of: `{id: "{speaker}_{book}_{rest}"}`; `{year:4}` has exactly four
    characters."""
    partition_names: dict[str, str] = Field(default_factory=dict)
    """How file names call a partition, where otherwise than the specification: `{dev: validation}`."""
    language_names: dict[str, str] = Field(default_factory=dict)
    """How file names call a language: `{de: german}`."""
    media_root: str | None = None
    """Folder below `path` where relative paths of media start, which may have placeholders: `"{language}/clips"`."""

    @property
    def names(self) -> Names:
        """How the corpus writes partitions and languages."""
        return Names(self.partition_names, self.language_names)

    @property
    def templates(self) -> list[str]:
        """The templates of `files`."""
        return [self.files] if isinstance(self.files, str) and self.files else list(self.files)

    def partitions(self, base: Path) -> list[str]:
        """Names of the partitions that the files' names tell."""
        return find_partitions(self.root(base), self.templates, self.names)

    def records(self, base: Path, selection: Selection) -> Records:
        """Opens the rows of a part of the corpus.

        Raises:
            DataError: What is wrong with the files.
        """
        from speechlmm_train.readers.table.reader import open_tables

        return open_tables(self, self.root(base), selection)
