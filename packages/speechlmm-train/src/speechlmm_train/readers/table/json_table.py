"""A table that is one JSON value, as random-access records. Imports no torch."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechlmm_core.data.columns import lookup
from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError
from speechlmm_train.readers.table.dialect import Decoder, RowError, check_text, with_parts
from speechlmm_train.readers.table.nested import NestedError, rows


class JsonTable:
    """The rows of one file; each is kept as text, so that forked workers share it.

    Args:
        path: The file.
        record_path: Where the rows are.
        decode: Its encoding.
        shown: What messages call it.
        where: Values that rows must have, by column.
        parts: Regular expressions with named groups, by column, which become columns.
        told: What the file's name tells.
        media_root: Folder where relative paths start.
        faults: Where faults go.
    """

    columns: Sequence[str] = ()

    def __init__(
        self,
        path: Path,
        record_path: str,
        *,
        decode: Decoder,
        shown: str,
        where: Mapping[str, Sequence[str]],
        parts: Mapping[str, re.Pattern[str]],
        told: Mapping[str, str],
        media_root: str,
        faults: Faults,
    ) -> None:
        self.shown, self._told, self._root = shown, told, media_root
        self._text = bytearray()
        self._starts, self._numbers = array("Q"), array("I")
        try:
            value = json.loads(decode.whole(path.read_bytes().removeprefix(b"\xef\xbb\xbf")))
            if isinstance(value, Mapping) and not record_path:
                raise RowError(
                    f"holds one object (keys: {', '.join(list(value)[:20])}); name its rows by `record_path`"
                )
            check_text(value)
            for number, record in enumerate(rows(value, record_path), 1):
                full = with_parts(record, parts)
                if all(str(lookup(full, column, "where")) in values for column, values in where.items()):
                    self._starts.append(len(self._text))
                    self._numbers.append(number)
                    self._text += json.dumps(full, ensure_ascii=False).encode()
        except json.JSONDecodeError as exc:
            faults.add(f"{shown}:{exc.lineno}", f"bad JSON: {exc.msg} at column {exc.colno}")
        except (RowError, NestedError, DataError) as exc:
            faults.add(shown, str(exc))
        except (ValueError, RecursionError) as exc:  # thousands of digits, or of brackets
            faults.add(shown, f"bad JSON: {exc}")
        self._starts.append(len(self._text))

    def __len__(self) -> int:
        return len(self._numbers)

    def record(self, index: int) -> Mapping[str, Any]:
        """A row."""
        return json.loads(self._text[self._starts[index] : self._starts[index + 1]])

    def place(self, index: int) -> str:
        """File and number of a row."""
        return f"{self.shown} (row {self._numbers[index]})"

    def root(self, index: int) -> str:
        """Folder where the row's relative paths start."""
        return self._root

    def constants(self, index: int) -> Mapping[str, str]:
        """What the file's name tells."""
        return self._told
