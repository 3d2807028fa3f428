"""Shar folders: cuts in `cuts.000000.jsonl.gz`, and their audio in `recording.000000.tar`. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError
from speechlmm_train.readers.lhotse.lines import CutLines
from speechlmm_train.readers.lhotse.recording import SHAR
from speechlmm_train.readers.table.dialect import Decoder
from speechlmm_train.readers.table.line_table import LineTable
from speechlmm_train.readers.unpack import unpacked
from speechlmm_train.readers.webdataset.shard_index import shard_index

CUTS = re.compile(r"cuts\.(\w+)\.jsonl(\.gz)?")


def is_shar(folder: Path) -> bool:
    """Whether a folder is one of Shar."""
    return folder.is_dir() and any(CUTS.fullmatch(path.name) for path in folder.glob("cuts.*"))


def shar_files(folder: Path) -> list[Path]:
    """The manifests of cuts in a Shar folder."""
    return sorted(path for path in folder.glob("cuts.*") if CUTS.fullmatch(path.name))


class SharRecords:
    """The records of one shard: each line of its cuts has two members in the archive, the audio and its manifest.

    Args:
        path: The manifest of cuts.
        unit: What becomes a record.
        root: Folder where relative paths start.
        languages: Codes by the manifest's names of languages.
        told: What the folder's name tells.
        faults: Where faults go.

    Raises:
        DataError: The archive is missing or damaged, or does not belong to the cuts.
        OSError: The files cannot be read.
    """

    columns: Sequence[str] = ()

    def __init__(
        self,
        path: Path,
        *,
        unit: str,
        root: str,
        languages: Mapping[str, str],
        told: Mapping[str, str],
        faults: Faults,
    ) -> None:
        dialect = CutLines(Decoder(), unit=unit, root=root, languages=languages)
        self.table = LineTable(
            unpacked(path),
            dialect,
            shown=str(path),
            skip_first=False,
            where={},
            parts={},
            told=told,
            media_root=root,
            faults=faults,
        )
        match = CUTS.fullmatch(path.name)
        assert match is not None
        self.archive = path.parent / f"recording.{match[1]}.tar"
        self.index = None
        if any(SHAR in self.table.record(number)["audio"] for number in range(len(self.table))):
            if not self.archive.is_file():
                raise DataError(f"{self.archive}: no such file, but {path} has cuts whose audio is in it")
            self.index = shard_index(self.archive)
            self._check()

    def _check(self) -> None:
        """Makes sure that the archive has two members for each line, named after its cut."""
        assert self.index is not None
        for number in range(len(self.table)):
            record = self.table.record(number)
            if SHAR not in record["audio"]:
                continue
            name = self._member(number)
            if name is None or Path(name).with_suffix("").as_posix() != record["cut_id"]:
                raise DataError(
                    f"{self.table.place(number)}: the audio of the cut {record['cut_id']!r} is not where it should be "
                    f"in {self.archive} (found {name!r:.100}); make the shard again"
                )

    def _member(self, index: int) -> str | None:
        at = 2 * (self.table.number(index) - 1)
        return self.index.name(at) if self.index is not None and at < len(self.index) else None

    def __len__(self) -> int:
        return len(self.table)

    def record(self, index: int) -> Mapping[str, Any]:
        """A record, whose audio is a part of the archive.

        Raises:
            DataError: The manifest was changed.
        """
        record = dict(self.table.record(index))
        audio = dict(record["audio"])
        if audio.pop(SHAR, None) is None or self.index is None:
            return record
        at = 2 * (self.table.number(index) - 1)
        offset, size = int(self.index.offsets[at]), int(self.index.sizes[at])
        place = {"path": str(self.archive.absolute()), "offset": offset, "size": size, "member": self.index.name(at)}
        return {**record, "audio": {**audio, **place}}

    def place(self, index: int) -> str:
        """File and line of a cut."""
        return self.table.place(index)

    def root(self, index: int) -> str:
        """Folder where relative paths start."""
        return self.table.root(index)

    def constants(self, index: int) -> Mapping[str, str]:
        """What the folder's name tells."""
        return self.table.constants(index)
