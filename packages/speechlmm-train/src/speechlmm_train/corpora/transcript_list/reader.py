"""Reads lists of transcripts. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError
from speechlmm_train.corpora.layout import Found, fill
from speechlmm_train.corpora.listed import ListedRecords

if TYPE_CHECKING:
    from speechlmm_train.corpora.transcript_list.config import TranscriptListDatasetConfig


class TranscriptList(ListedRecords):
    """The utterances of some lists; implements the `Records` protocol.

    Args:
        config: How a line is read.
        root: The corpus' root.
        lists: The lists.

    Raises:
        DataError: Lines are wrong.
    """

    def __init__(self, config: TranscriptListDatasetConfig, root: str, lists: Sequence[Found]) -> None:
        super().__init__(root, lists)
        self.config = config
        self.columns: Sequence[str] = ("id", "text", "folder", "audio", *config.id_parts, *lists[0].told)
        self._extensions: dict[int, str] = {}
        fill("audio", config.audio, dict.fromkeys(self.columns, ""))
        self._check()

    def _check(self) -> None:
        faults = Faults()
        for index, line in enumerate(self._lines.all()):
            try:
                self._split(line)
            except DataError as exc:
                faults.add(self.place(index), str(exc), order=index)
        faults.raise_if_any()

    def record(self, index: int) -> Mapping[str, str]:
        """An utterance."""
        found = self.lists[self._lines.file(index)]
        row = {**found.told, "folder": found.folder, **self._split(self._lines.line(index))}
        stem = fill("audio", self.config.audio, row)
        return {**row, "audio": stem + self._extension(self._lines.file(index), stem)}

    def _split(self, line: str) -> dict[str, str]:
        name, separator, text = line.strip().partition(self.config.separator)
        if not separator or not text.strip():
            raise DataError(
                f"expected the name of an utterance, {self.config.separator!r} and its transcript, got {line!r:.80}"
            )
        parts = name.split(self.config.id_separator, max(0, len(self.config.id_parts) - 1))
        if self.config.id_parts and len(parts) != len(self.config.id_parts):
            form = self.config.id_separator.join(f"<{part}>" for part in self.config.id_parts)
            raise DataError(f"expected a name of the form {form}, got {name!r:.80}")
        return {"id": name, "text": text.strip(), **dict(zip(self.config.id_parts, parts, strict=False))}

    def _extension(self, number: int, stem: str) -> str:
        """The extension of a list's files, found once."""
        if number not in self._extensions:
            there = (one for one in self.config.extensions if os.path.exists(os.path.join(self._root, stem + one)))
            self._extensions[number] = next(there, self.config.extensions[0])
        return self._extensions[number]
