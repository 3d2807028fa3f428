"""What the readers of records share: the corpus' folder, its files, and names that must be unique. Imports no torch."""

from __future__ import annotations

from abc import ABC
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from pydantic import Field, field_validator

from speechlmm_core.data.columns import lookup
from speechlmm_core.data.examples import Examples
from speechlmm_core.data.records import RecordDatasetConfig, RecordExamples, Records
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import EVERYTHING, Selection

MANY = 10_000
"""Rows of the same name that are looked at to say where they come from."""


class RecordReaderConfig(RecordDatasetConfig, ABC):
    """A dataset of records whose examples have names of their own."""

    own_columns: ClassVar[Mapping[str, str]] = {}
    """Columns that the layout itself names, by field; `columns` may map the fields otherwise, or to nothing."""
    columns: dict[str, str | None] = Field(default_factory=dict, validate_default=True)
    """Source by field of the example: a column, a template of columns (`"{id}.flac"`), or a constant (`=en`)."""

    @field_validator("columns")
    @classmethod
    def _with_own_columns(cls, columns: dict[str, str | None]) -> dict[str, str | None]:
        return {**cls.own_columns, **columns}

    def root(self, base: Path) -> Path:
        """The corpus' folder or file, absolute, as an index may be used from another working folder.

        Raises:
            DataError: No path is given, or it cannot be one.
        """
        if not self.path or "\0" in self.path:
            raise DataError(f"a dataset of type {self.type!r} needs the `path` of its files, got {self.path!r}")
        try:
            return (base / Path(self.path).expanduser()).absolute()
        except RuntimeError as exc:
            raise DataError(f"`path` {self.path!r}: there is no such user; write the folder in full") from exc

    def read(self, base: Path, selection: Selection = EVERYTHING) -> Examples:
        """Opens a part of the corpus as examples.

        Raises:
            DataError: What is wrong with the files, a column that is mapped does not exist, or an `id` occurs twice.
        """
        examples = super().read(base, selection)
        assert isinstance(examples, RecordExamples)
        if self.columns.get("id") is not None:
            check_unique(examples)
        return examples


def check_unique(examples: RecordExamples) -> None:
    """Makes sure that no two examples have the same name, in 8 bytes each.

    The same recording may be there for each language that it is translated into, where examples tell that language.

    Raises:
        DataError: Some have; the first two are named with their places.
    """
    translated = any("target_language" in (mapped or "") for mapped in examples.columns.values())
    source = examples.columns["id"] or ""
    keys = array("Q")
    records = examples.records
    for index, name in enumerate(_names(examples, records, source)):
        written = f"{_pair(records, index)}\0{name}" if translated else name
        digest = blake2b(written.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        keys.append(int.from_bytes(digest, "little"))
    values = np.frombuffer(keys, np.uint64)
    order = np.argsort(values, kind="stable")
    again = np.flatnonzero(values[order[1:]] == values[order[:-1]])
    if len(again):
        second = int(order[again + 1].min())
        first = int(np.flatnonzero(values == values[second])[0])
        pairs = sorted({_pair(records, int(at)) for at in [first, *order[again + 1][:MANY], *order[again][:MANY]]})
        if _pair(records, first) != _pair(records, second):
            raise DataError(f"the same recordings are in {', '.join(pairs)}; name one of them under `languages`")
        raise DataError(
            f"{examples.place(second)}: the id {examples.example(second).id!r} stands at {examples.place(first)} "
            f"already ({len(again)} such rows); let columns.id name what tells all rows apart, or leave it out"
        )


def _pair(records: Records, index: int) -> str:
    """The languages that a row's file tells."""
    told = records.constants(index)
    return "-".join(told[name] for name in ("source_language", "target_language") if name in told)


def _names(examples: RecordExamples, records: Records, source: str) -> Iterator[str]:
    if source.startswith("=") or "{" in source:
        yield from (example.id for example in examples)
        return
    for index, record in enumerate(each(records)):
        try:
            value = lookup(record, source, "id")
        except DataError as exc:
            raise DataError(f"{examples.place(index)}: {exc}") from exc
        yield str(index + 1) if value is None else str(value)


def each(records: Records) -> Iterator[Mapping[str, Any]]:
    """All records in a row, which some give faster than one by one."""
    if isinstance(records, ConcatRecords):
        for part in records.parts:
            yield from each(part)
    elif isinstance(records, InARow):
        yield from records.each(range(len(records)))
    else:
        yield from (records.record(index) for index in range(len(records)))


@runtime_checkable
class InARow(Protocol):
    """Records that read many faster than one by one."""

    def __len__(self) -> int: ...

    def each(self, indices: Iterable[int]) -> Iterator[Mapping[str, Any]]:
        """Some rows, one after the other."""
        ...


class ConcatRecords:
    """The records of several files, one after the other."""

    def __init__(self, parts: Sequence[Records], sources: Sequence[Path] = ()) -> None:
        self.parts = [part for part in parts if len(part)]
        self.sources = tuple(sources)
        names = [list(part.columns) for part in self.parts]
        self.columns: Sequence[str] = names[0] if names and all(one == names[0] for one in names) else ()
        self._ends: list[int] = []
        for part in self.parts:
            self._ends.append(len(part) + (self._ends[-1] if self._ends else 0))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def record(self, index: int) -> Mapping[str, Any]:
        """A row."""
        part, at = self._find(index)
        return part.record(at)

    def place(self, index: int) -> str:
        """Where a row stands, as messages name it."""
        part, at = self._find(index)
        return part.place(at)

    def root(self, index: int) -> str:
        """Folder where the row's relative paths start."""
        part, at = self._find(index)
        return part.root(at)

    def constants(self, index: int) -> Mapping[str, str]:
        """What the row's file tells by its name."""
        part, at = self._find(index)
        return part.constants(at)

    def _find(self, index: int) -> tuple[Records, int]:
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)
