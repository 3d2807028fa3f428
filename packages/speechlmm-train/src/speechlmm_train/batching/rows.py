"""Which rows a stage is trained on, short: so that a run that goes on notices others in their place.

No row is read for it: of prepared parts, the index knows what they hold, and of all others the files that list the
examples are hashed, as they are. Media are not looked at. Imports no torch.

Shapes: N examples that take part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ConcatExamples, Examples
from speechlmm_core.data.index.views import prepared_rows

WHOLE_BYTES = 1 << 30
"""Larger files (tables that hold their audio) are known by their size, their beginning and their end."""
END_BYTES = 1 << 20


def digest_of_rows(examples: Sequence[Example], indices: NDArray[np.int64]) -> str:
    """Digest of the rows that some examples of a dataset are made of, wherever their files lie.

    Args:
        examples: The dataset.
        indices: (N,) the examples.
    """
    found = hashlib.sha256(np.ascontiguousarray(indices, "<i8").tobytes())
    files: dict[Path, bytes] = {}
    for part in _parts(examples):
        found.update(f"part of {len(part)} ".encode())
        if (prepared := prepared_rows(part)) is not None:
            found.update(prepared[0].header.stamp.encode())
            found.update(np.ascontiguousarray(prepared[1], "<i8").tobytes())
            continue
        view: Any = part
        while view is not None:
            if (own := getattr(view, "indices", None)) is not None:
                found.update(np.ascontiguousarray(own, "<i8").tobytes())
            view = getattr(view, "whole", None)
        for path in part.sources if isinstance(part, Examples) else ():
            if path not in files:
                files[path] = _content(path)
            found.update(files[path])
    return found.hexdigest()[:16]


def _parts(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    if isinstance(examples, ConcatExamples):
        for part in examples.parts:
            yield from _parts(part)
    else:
        yield examples


def _content(path: Path) -> bytes:
    """Digest of a file; nothing of what is no file."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size <= WHOLE_BYTES:
                return hashlib.file_digest(file, "sha256").digest()
            found = hashlib.sha256(f"{size} ".encode() + file.read(END_BYTES))
            file.seek(-END_BYTES, 2)
            found.update(file.read())
            return found.digest()
    except OSError:
        return b""
