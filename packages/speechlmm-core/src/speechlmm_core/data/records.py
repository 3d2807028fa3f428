"""Readers of records: tables, folders and archives whose columns become fields of examples. Imports no torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from speechlmm_core.data.columns import ColumnMap
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import Examples
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import EVERYTHING, DatasetConfig, Selection


class Records(Protocol):
    """A table by rows: what a reader makes of a corpus' files. Picklable; safe in forks."""

    columns: Sequence[str]
    """Names of the columns; empty where rows differ."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def record(self, index: int) -> Mapping[str, Any]:
        """A row. Bytes of media are best left where they are, as `{"path", "offset", "size"}`."""
        ...

    def place(self, index: int) -> str:
        """Where a row stands, as messages name it (`clips.tsv:12`)."""
        ...

    def root(self, index: int) -> str:
        """Folder where the row's relative paths start."""
        ...

    def constants(self, index: int) -> Mapping[str, str]:
        """What the row's file tells by its name (`{"partition": "dev", "source_language": "en"}`)."""
        ...


class RecordDatasetConfig(DatasetConfig):
    """A dataset of records; `columns` says which of their columns fill an example."""

    path: str = ""
    """Root of the corpus; a relative path starts at the file that names it."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Source by field of the example: a column, a template of columns (`"{id}.flac"`), or a constant (`=en`)."""

    @abstractmethod
    def records(self, base: Path, selection: Selection) -> Records:
        """Opens the records of a part of the corpus.

        Raises:
            DataError: What is wrong with the files.
        """

    def read(self, base: Path, selection: Selection = EVERYTHING) -> Examples:
        """Opens a part of the corpus as examples.

        Raises:
            DataError: What is wrong with the files, or a column that is mapped does not exist.
        """
        records = self.records(base, selection)
        examples = RecordExamples(records, self.columns, selection)
        if records.columns and (lines := ColumnMap(self.columns, constants=examples.told(0)).missing(records.columns)):
            known = ", ".join(records.columns)
            raise DataError("\n".join([*lines, f"the columns of {self.path!r} are: {known}"]))
        return examples

    @property
    def provides(self) -> frozenset[str] | None:
        """Fields of `Example` that the mapping fills."""
        named = {field for field, source in self.columns.items() if source is not None}
        media = {f"media.{field}" for field in named & {"audio", "video"}}
        media |= {field for field in named if field.startswith("media.")}
        return frozenset({*named, *media, "media"} if media else named)


class RecordExamples(Examples):
    """Examples that are made of records when they are asked for."""

    def __init__(self, records: Records, columns: Mapping[str, str | None], selection: Selection) -> None:
        self.records = records
        self.columns = dict(columns)
        self.selection = selection
        self._maps: dict[tuple[str, tuple[tuple[str, str], ...]], ColumnMap] = {}

    def __len__(self) -> int:
        return len(self.records)

    def told(self, index: int) -> dict[str, str]:
        """What the selection and the row's file say, by name."""
        chosen = {
            name: value
            for name in ("partition", "source_language", "target_language")
            if (value := getattr(self.selection, name)) is not None
        }
        return {**chosen, **(self.records.constants(index) if len(self.records) else {})}

    def example(self, index: int) -> Example:
        """The example of a number.

        Raises:
            DataError: Its record cannot be used; the message names its place.
        """
        root, told = self.records.root(index), self.told(index)
        key = (root, tuple(sorted(told.items())))
        if key not in self._maps:
            self._maps[key] = ColumnMap(self.columns, media_root=root, constants=told)
        try:
            return self._maps[key].example(self.records.record(index), index + 1, task=self.selection.task or "asr")
        except DataError as exc:
            raise DataError(f"{self.place(index)}: {exc}") from exc

    def place(self, index: int) -> str:
        """Where an example stands, as messages name it."""
        return self.records.place(index)

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files that say which records there are, where the records' own attribute `sources` tells."""
        return tuple(getattr(self.records, "sources", ()))
