"""Opens tar shards as records. Imports no torch."""

from __future__ import annotations

import json
import logging
import os
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.data.faults import Faults
from speechlmm_core.data.records import Records
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection
from speechlmm_core.media.source import MediaSource
from speechlmm_train.readers.file_pattern import FoundFile, find_files
from speechlmm_train.readers.record_reader import ConcatRecords
from speechlmm_train.readers.table.dialect import RowError, check_text
from speechlmm_train.readers.webdataset.shard_index import ShardIndex, shard_index

if TYPE_CHECKING:
    from speechlmm_train.readers.webdataset.config import WebDatasetConfig

logger = logging.getLogger(__name__)

KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
"""The key of a member is its name up to the first dot after the last slash; its column is what follows."""
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
TEXTS = frozenset({"txt", "text", "transcript", "transcription", "lang"})
NUMBERS = frozenset({"cls", "cls2", "class", "count", "index", "inx", "id"})
MAX_SHARDS = 100_000
MAX_TEXT = 64 << 20
"""Bytes of a text or JSON member."""


def open_shards(config: WebDatasetConfig, root: Path, selection: Selection) -> Records:
    """Opens the shards that the selection asks for.

    Raises:
        DataError: There are none, or what is wrong with them: all faults are counted, the first listed.
    """
    if root.is_file():
        found = [FoundFile(root, {})]
    else:
        found = _find(config, *place_of_shards(root, config.templates), selection)
    from tqdm import tqdm

    faults = Faults()
    shards: list[Records] = []
    for one in tqdm(found, desc="shards", delay=3, disable=None):
        try:
            shards.append(Shard(one.path, shard_index(one.path), one.told))
        except DataError as exc:
            faults.extend(exc)
        except OSError as exc:
            faults.add(str(one.path), f"cannot be read: {exc.strerror or exc}")
    faults.raise_if_any()
    records = ConcatRecords(shards, [one.path for one in found])
    if not len(records):
        raise DataError(f"{', '.join(str(one.path) for one in found[:3])}: no samples; check `files`")
    return records


def _find(config: WebDatasetConfig, folder: Path, templates: list[str], selection: Selection) -> list[FoundFile]:
    numbers = expand(templates)
    if numbers == templates:
        return find_files(folder, templates, selection, config.names)
    faults = Faults()
    found: list[FoundFile] = []
    for template in numbers:  # each of a range must be there
        try:
            found += find_files(folder, [template], selection, config.names)
        except DataError as exc:
            faults.extend(exc)
    faults.raise_if_any()
    return found


def place_of_shards(root: Path, templates: Sequence[str]) -> tuple[Path, list[str]]:
    """The shards' folder and templates; a path that is no folder is a template itself."""
    if root.is_dir() or not any(character in str(root) for character in "{*?"):
        return root, list(templates)
    parts = root.parts
    at = next(number for number, part in enumerate(parts) if any(character in part for character in "{*?"))
    return Path(*parts[:at]), ["/".join(parts[at:])]


def expand(templates: Iterable[str]) -> list[str]:
    """Each ``{000..123}`` as the numbers from the first to the last, as wide as they are written.

    Raises:
        DataError: It is no range, or one of far too many.
    """
    done: list[str] = []
    left = list(templates)[::-1]
    while left:
        template = left.pop()
        match = RANGE.search(template)
        if match is None:
            done.append(template)
        else:
            first, last = int(match[1]), int(match[2])
            if not first <= last < first + MAX_SHARDS or len(done) + len(left) > MAX_SHARDS:
                raise DataError(f"`files` {template!r}: {match[0]} is no range of at most {MAX_SHARDS} shards")
            width = len(match[1])
            numbers = [f"{number:0{width}}" for number in range(first, last + 1)]
            left += [template[: match.start()] + number + template[match.end() :] for number in reversed(numbers)]
    return done


class Shard:
    """The samples of an archive: members that follow each other and have the same key."""

    columns: Sequence[str] = ()

    def __init__(self, path: Path, index: ShardIndex, told: Mapping[str, str]) -> None:
        self.path, self.index, self._told = path, index, told
        self._starts = array("I")
        self._ends = array("I")
        before: str | None = None
        columns: set[str] = set()
        passed = 0
        for number in range(len(index)):
            match = KEY.fullmatch(index.name(number))
            if match is None:
                passed += 1
                before = None
                continue
            if match[1] != before:
                self._starts.append(number)
                self._ends.append(number)
                before, columns = match[1], set()
            if match[2].lower() in columns:
                raise DataError(
                    f"{self._shown(number)}: the sample has two members with this ending; give each its own"
                )
            columns.add(match[2].lower())
            self._ends[-1] = number + 1
        if passed:
            logger.warning("%s: %d members have no ending and belong to no sample", path, passed)

    def __len__(self) -> int:
        return len(self._starts)

    def record(self, index: int) -> Mapping[str, Any]:
        """A sample.

        Raises:
            DataError: A member is not what its ending says, or the archive was removed.
        """
        found: dict[str, Any] = {"__key__": self._key(index), "__url__": str(self.path)}
        for number in range(self._starts[index], self._ends[index]):
            match = KEY.fullmatch(self.index.name(number))
            assert match is not None
            column = match[2].lower()
            found[column] = self._value(number, column.rpartition(".")[2])
        return found

    def _value(self, number: int, ending: str) -> Any:
        offset, size = int(self.index.offsets[number]), int(self.index.sizes[number])
        if ending not in TEXTS and ending not in NUMBERS and ending not in ("json", "jsn"):
            return {"path": str(self.path), "offset": offset, "size": size, "member": self.index.name(number)}
        if size > MAX_TEXT:
            raise DataError(f"{self._shown(number)}: {size} bytes, more than a text may have ({MAX_TEXT >> 20} MiB)")
        try:
            with self.path.open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, offset)
            if len(content) < size:
                raise DataError(f"{self._shown(number)}: truncated; was the archive changed after it was opened?")
            text = content.decode()
            if ending in TEXTS:
                return text.strip()
            if ending in NUMBERS:
                return int(text) if text.strip().lstrip("-").isdecimal() else text.strip()
            value = json.loads(text)
            check_text(value)
            return value
        except OSError as exc:
            raise DataError(f"{self._shown(number)}: cannot be read: {exc.strerror or exc}") from exc
        except UnicodeDecodeError as exc:
            raise DataError(f"{self._shown(number)}: not UTF-8 ({exc.reason} at byte {exc.start})") from exc
        except (ValueError, RecursionError, RowError) as exc:
            if isinstance(exc, DataError):
                raise
            raise DataError(f"{self._shown(number)}: bad JSON: {exc}") from exc

    def _key(self, index: int) -> str:
        match = KEY.fullmatch(self.index.name(self._starts[index]))
        assert match is not None
        return match[1]

    def _shown(self, number: int) -> str:
        return str(MediaSource(self.path, 0, 0, member=self.index.name(number)))

    def place(self, index: int) -> str:
        """Archive and key of a sample."""
        return str(MediaSource(self.path, 0, 0, member=self._key(index)))

    def root(self, index: int) -> str:
        """Folder where relative paths in a sample start."""
        return str(self.path.parent.absolute())

    def constants(self, index: int) -> Mapping[str, str]:
        """What the shard's name tells."""
        return self._told
