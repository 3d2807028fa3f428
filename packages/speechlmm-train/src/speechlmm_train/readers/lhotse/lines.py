"""Lines of lhotse's manifests as records. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.errors import DataError
from speechlmm_train.readers.lhotse.recording import cut_records, supervision_record
from speechlmm_train.readers.table.dialect import JsonLines, RowError
from speechlmm_train.readers.table.line_table import LineTable


@dataclass(frozen=True)
class CutLines(JsonLines):
    """A cut a line, with a record for each of its supervisions, or one."""

    unit: str = "supervision"
    root: str = ""
    languages: Mapping[str, str] = field(default_factory=dict[str, str])

    def records(self, line: bytes) -> list[dict[str, Any]]:
        """The records of a line.

        Raises:
            RowError: It is no cut, or one whose audio cannot be got.
        """
        (cut,) = super().records(line)
        return cut_records(cut, self.unit, self.root, self.languages)


class RecordingLines:
    """The recordings of manifests, found by their names.

    Raises:
        DataError: Two have the same name.
    """

    def __init__(self, table: LineTable) -> None:
        self.table = table
        keys = [_key(table.record(number).get("id")) for number in range(len(table))]
        values = np.array(keys, np.uint64)
        self._order: NDArray[np.int64] = np.argsort(values, kind="stable")
        self._keys = values[self._order]
        again = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        if len(again):
            second = int(self._order[again[0] + 1])
            raise DataError(f"{table.place(second)}: the recording {table.record(second).get('id')!r} is there twice")

    def find(self, name: Any) -> Mapping[str, Any]:
        """A recording.

        Raises:
            RowError: There is none of this name.
        """
        at = int(np.searchsorted(self._keys, np.uint64(_key(name))))
        if at < len(self._keys):
            found = self.table.record(int(self._order[at]))
            if found.get("id") == name:
                return found
        raise RowError(f"there is no recording {name!r} in {self.table.shown}")


@dataclass(frozen=True)
class SupervisionLines(JsonLines):
    """A supervision a line, whose recording stands in another manifest."""

    root: str = ""
    languages: Mapping[str, str] = field(default_factory=dict[str, str])
    recordings: RecordingLines | None = None

    def records(self, line: bytes) -> list[dict[str, Any]]:
        """The record of a line.

        Raises:
            RowError: It is no supervision, or its recording's audio cannot be got.
        """
        (supervision,) = super().records(line)
        assert self.recordings is not None
        recording = self.recordings.find(supervision.get("recording_id"))
        return [supervision_record(supervision, recording, self.root, self.languages)]


def _key(name: Any) -> int:
    from hashlib import blake2b

    return int.from_bytes(blake2b(str(name).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
