"""Reads text files that lie beside recordings. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechlmm_core.errors import DataError
from speechlmm_train.corpora.layout import TOLD, Found
from speechlmm_train.corpora.lines import read_text

if TYPE_CHECKING:
    from speechlmm_train.corpora.text_beside_media.config import TextBesideMediaDatasetConfig


class TextBesideMedia:
    """Recordings with their texts; implements the `Records` protocol.

    Args:
        config: How names are read.
        root: The corpus' root.
        texts: The text files.
    """

    def __init__(self, config: TextBesideMediaDatasetConfig, root: str, texts: Sequence[Found]) -> None:
        self.config = config
        self.texts = list(texts)
        self._root = root
        self.columns: Sequence[str] = ("id", "text", "audio", "folder", *config.id_parts, *texts[0].told)

    def __len__(self) -> int:
        return len(self.texts)

    def record(self, index: int) -> Mapping[str, str]:
        """A recording.

        Raises:
            DataError: Its text cannot be read, or its name has other parts.
        """
        found = self.texts[index]
        name = os.path.basename(found.path).partition(".")[0]
        parts = name.split(self.config.id_separator, max(0, len(self.config.id_parts) - 1))
        if self.config.id_parts and len(parts) != len(self.config.id_parts):
            form = self.config.id_separator.join(f"<{part}>" for part in self.config.id_parts)
            raise DataError(f"expected a name of the form {form}, got {name!r}")
        return {
            **found.told,
            "id": name,
            "text": read_text(found.path).strip(),
            "folder": found.folder,
            "audio": os.path.join(found.folder, name + self.config.extension),
            **dict(zip(self.config.id_parts, parts, strict=False)),
        }

    def place(self, index: int) -> str:
        """The text file."""
        return self.texts[index].path

    def root(self, index: int) -> str:
        """The corpus' root."""
        return self._root

    def constants(self, index: int) -> Mapping[str, str]:
        """What the path tells."""
        return {name: value for name, value in self.texts[index].told.items() if name in TOLD}

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files that say which recordings there are."""
        return tuple(Path(found.path) for found in self.texts)
