"""The rows of a memory-mapped Arrow file. Imports no torch, and pyarrow late."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.errors import DataError
from speechlmm_core.media.table_cell import ArrowTable

if TYPE_CHECKING:
    import pyarrow as pa


class ArrowRecords:
    """The rows of one file.

    Args:
        path: The Arrow file.
        shown: What messages call it: the file it was made of.
        told: What its name tells.
        media_root: Folder where relative paths start.

    Raises:
        DataError: It is no Arrow file, or a damaged one.
    """

    def __init__(self, path: Path, *, shown: str, told: Mapping[str, str], media_root: str) -> None:
        self.path, self.shown, self._told, self._root = path, shown, told, media_root
        self.columns: Sequence[str] = list(self._table.names)
        self._count = self._table.num_rows
        self._media = {field.name for field in self._table.schema if is_media(field.type)}
        self._labels = class_labels(self._table.schema)

    @cached_property
    def _table(self) -> ArrowTable:
        import pyarrow as pa

        try:
            with self.path.open("rb") as file:
                whole = file.read(6) == b"ARROW1"
            return ArrowTable(self.path, whole=whole)
        except (pa.ArrowException, OSError, ValueError) as exc:
            reason = " ".join(str(getattr(exc, "strerror", None) or exc).split())[:200]
            raise DataError(f"{self.shown}: no Arrow file that can be read, or a damaged one ({reason})") from exc

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_table"}

    def __len__(self) -> int:
        return self._count

    def record(self, index: int) -> Mapping[str, Any]:
        """A row; of media, where they are.

        Raises:
            DataError: The file is damaged.
        """
        import pyarrow as pa

        try:
            return {name: self._value(index, name) for name in self.columns}
        except (pa.ArrowException, OSError, UnicodeDecodeError, IndexError) as exc:
            raise DataError(f"damaged ({' '.join(str(exc).split())[:200]}); make the file again") from exc

    def _value(self, index: int, name: str) -> Any:
        import pyarrow as pa

        value = self._table.cell(None, index, name)
        if name in self._labels and value.is_valid:
            number, names = value.as_py(), self._labels[name]
            return names[number] if 0 <= number < len(names) else None
        if name not in self._media or not value.is_valid:
            return value.as_py()
        inner = None
        if pa.types.is_struct(value.type):
            inner = value["path"].as_py() if any(field.name == "path" for field in value.type) else None
            if not value["bytes"].is_valid:
                return None if inner is None else {"path": inner}
        member = inner or f"{Path(self.shown).name} row {index + 1}"
        return {"path": str(self.path), "row": index, "column": name, "member": member}

    def place(self, index: int) -> str:
        """File and row, counted from 1."""
        return f"{self.shown} (row {index + 1})"

    def root(self, index: int) -> str:
        """Folder where the row's relative paths start."""
        return self._root

    def constants(self, index: int) -> Mapping[str, str]:
        """What the file's name tells."""
        return self._told


def is_media(kind: pa.DataType) -> bool:
    """Whether a column holds the bytes of files: binary, or Hugging Face's objects of `bytes` and `path`."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        inner = {field.name: field.type for field in kind}
        return "bytes" in inner and is_media(inner["bytes"])
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the classes, by column, as `datasets` notes them in a file."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: one["names"] for name, one in noted.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {name: list(map(str, names)) for name, names in found.items() if isinstance(names, list)}
