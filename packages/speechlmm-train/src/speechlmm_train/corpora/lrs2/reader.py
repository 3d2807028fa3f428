"""Reads the clips of LRS2. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from speechlmm_core.errors import DataError
from speechlmm_train.corpora.layout import Found
from speechlmm_train.corpora.lines import read_text
from speechlmm_train.corpora.listed import ListedRecords

if TYPE_CHECKING:
    from speechlmm_train.corpora.lrs2.config import LRS2DatasetConfig

TABLE = ["WORD", "START", "END", "ASDSCORE"]


class LRS2Clips(ListedRecords):
    """The clips of some lists; implements the `Records` protocol.

    Args:
        config: Where clips lie.
        root: The corpus' root.
        lists: The lists.
    """

    columns: Sequence[str] = ("id", "text", "clip", "confidence", "words")

    def __init__(self, config: LRS2DatasetConfig, root: str, lists: Sequence[Found]) -> None:
        super().__init__(root, lists)
        self.config = config

    def record(self, index: int) -> Mapping[str, Any]:
        """A clip.

        Raises:
            DataError: Its text file is missing or is not one.
        """
        found = self.lists[self._lines.file(index)]
        name = self._lines.line(index).split()[0]  # the test list has a mark behind some names
        partition = found.told.get("partition", "")
        folder = partition if partition in self.config.folders else self.config.folders[0]
        stem = os.path.join(found.folder, folder, name)
        return {"id": f"{folder}/{name}", "clip": f"{stem}.mp4", **_parse(f"{stem}.txt")}


def _parse(path: str) -> dict[str, Any]:
    """What a clip's text file says."""
    found: dict[str, Any] = {"text": None, "confidence": None, "words": None}
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, 1):
        key, colon, value = line.partition(":")
        if colon and key == "Text":
            found["text"] = value.strip()
        elif colon and key == "Conf":
            found["confidence"] = value.strip()
        elif line.split() == TABLE:
            found["words"] = [_word(path, at, row) for at, row in enumerate(lines[number:], number + 1) if row.strip()]
            break
    if not found["text"]:
        raise DataError(f"{path!r} has no line 'Text: …' with what is said")
    return found


def _word(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        word, start, end, _ = line.split()
        return {"word": word, "start": float(start), "end": float(end)}
    except ValueError as exc:
        raise DataError(f"{path}:{number}: expected a word, its start, its end and a score, got {line!r:.80}") from exc
