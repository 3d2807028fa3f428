"""Reads lists of segments and the texts that correspond to them. Imports no torch."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from speechlmm_core.errors import DataError
from speechlmm_train.corpora.layout import TOLD, Found, fill
from speechlmm_train.corpora.lines import AlignedLines

if TYPE_CHECKING:
    from speechlmm_train.corpora.segment_list.config import SegmentListDatasetConfig

COLUMNS = ("id", "folder", "wav", "audio", "start", "end", "speaker")

NEEDED = ("wav", "offset", "duration")
PLAIN = (str, int, float)


class SegmentList:
    """The segments of some lists; implements the `Records` protocol.

    Args:
        config: How a segment is read.
        root: The corpus' root.
        lists: The lists.

    Raises:
        DataError: A file of texts is missing, or has another number of lines than its list.
    """

    def __init__(self, config: SegmentListDatasetConfig, root: str, lists: Sequence[Found]) -> None:
        self.config = config
        self.lists = list(lists)
        self._root = root
        names = [{**found.told, "folder": found.folder} for found in lists]
        columns = {"": [found.path for found in lists]}
        columns |= {text: [fill("texts", form, told) for told in names] for text, form in config.texts.items()}
        self._lines = AlignedLines(columns)
        self.columns: Sequence[str] = (*COLUMNS, *config.texts, *lists[0].told)
        self._extensions: dict[int, str] = {}
        fill("audio", config.audio, dict.fromkeys(self.columns, ""))

    def __len__(self) -> int:
        return len(self._lines)

    def record(self, index: int) -> Mapping[str, Any]:
        """A segment with its texts.

        Raises:
            DataError: The segment's line cannot be understood.
        """
        number = self._lines.file(index)
        row = self._lines.row(index)
        segment = self._yaml(row.pop("")) if self.config.format == "yaml" else self._columns(row.pop(""))
        found = self.lists[number]
        row = {**found.told, "folder": found.folder, **segment, **row}
        stem = fill("audio", self.config.audio, row)
        name = os.path.splitext(segment["wav"])[0] if self.config.format == "yaml" else segment["wav"]
        identity = f"{name}_{round(segment['start'] * 1000):08d}_{round(segment['end'] * 1000):08d}"
        return {**row, "id": identity, "audio": stem + self._extension(number, stem)}

    def place(self, index: int) -> str:
        """The list and line of a segment."""
        return self._lines.place(index)

    def root(self, index: int) -> str:
        """The corpus' root."""
        return self._root

    def constants(self, index: int) -> Mapping[str, str]:
        """What the list's path tells."""
        return {k: v for k, v in self.lists[self._lines.file(index)].told.items() if k in TOLD}

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files that say which segments there are."""
        return tuple(Path(path) for lines in self._lines.lines.values() for path in lines.paths)

    def _yaml(self, line: str) -> dict[str, Any]:
        """A segment as MuST-C writes it: a list's item with a mapping on one line."""
        match = _PLAIN.fullmatch(line)
        segment = dict(pair.split(": ", 1) for pair in match[1].split(", ")) if match else _parsed(line)
        if not isinstance(segment, dict) or not all(isinstance(segment.get(key), PLAIN) for key in NEEDED):
            raise DataError(f"expected '- {{duration: …, offset: …, speaker_id: …, wav: …}}', got {line!r:.120}")
        start, length = _seconds(segment["offset"], line), _seconds(segment["duration"], line)
        return {
            "wav": str(segment["wav"]),
            "start": start,
            "end": round(start + length, 6),
            "speaker": str(segment["speaker_id"]) if isinstance(segment.get("speaker_id"), PLAIN) else None,
        }

    def _columns(self, line: str) -> dict[str, Any]:
        """A segment as Europarl-ST writes it: recording, start and end."""
        parts = line.split()
        if len(parts) != 3:
            raise DataError(f"expected a recording, its start and its end in seconds, got {line!r:.120}")
        return {"wav": parts[0], "start": _seconds(parts[1], line), "end": _seconds(parts[2], line), "speaker": None}

    def _extension(self, number: int, stem: str) -> str:
        """The extension of a list's recordings, found once."""
        if not self.config.extensions:
            return ""
        if number not in self._extensions:
            there = (one for one in self.config.extensions if os.path.exists(os.path.join(self._root, stem + one)))
            self._extensions[number] = next(there, self.config.extensions[0])
        return self._extensions[number]


_PLAIN = re.compile(r"- \{((?:\w+: [\w.+-]+(?:, (?=\w))?)+)\}\s*")
"""A mapping without quotes or brackets, which need YAML proper: that takes thirty times as long."""


def _parsed(line: str) -> Any:
    try:
        item = yaml.safe_load(line)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    return item[0] if isinstance(item, list) and len(item) == 1 else None


def _seconds(value: Any, line: str) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise DataError(f"expected seconds, got {line!r:.120}")
    return found
