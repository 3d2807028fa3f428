"""Writes a part of a prepared index, whole or not at all. Imports no torch.

Shapes: N rows, M media.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.checkpoint.atomic import atomic_folder
from speechlmm_core.data.index.header import IndexHeader
from speechlmm_core.data.index.layout import (
    EXAMPLES,
    HASH_BYTES,
    HASHES,
    HEADER,
    IN_ORDER,
    MEDIA,
    SIZES_NAME,
    SORTED,
    STARTS,
)
from speechlmm_core.data.index.listed import MANY, write_listed
from speechlmm_core.data.index.state import content_hash
from speechlmm_core.errors import DataError
from speechlmm_core.media.source import MediaSource


def write_part(
    folder: Path, header: IndexHeader, columns: Mapping[str, NDArray[Any]], lines: Path, *, kept: NDArray[np.bool_]
) -> IndexHeader:
    """Writes a part, in place of the one that is there.

    Args:
        folder: The part's folder.
        header: Its header, but for the numbers that follow from the columns.
        columns: All columns of `layout` but `rows`, in the corpus' order; `lacks` and `kinds` where the header says so.
        lines: The file of the examples' lines; it is moved.
        kept: (N,) rows that are used.

    Raises:
        OSError: The disk is full, or the folder cannot be written to; an earlier index is still there.
    """
    order = np.argsort(~kept, kind="stable")  # (N,)
    with atomic_folder(folder) as new:
        nothing = np.zeros(len(kept))
        values = {"lacks": nothing, "kinds": nothing, **columns, "rows": np.arange(len(kept))}
        for name, kind in SORTED.items():
            _save(new, name, np.asarray(values[name])[order].astype(kind))
        for name, kind in {**IN_ORDER, **STARTS, **MEDIA}.items():
            _save(new, name, np.asarray(values[name]).astype(kind))
        _save(new, HASHES, np.asarray(values[HASHES], np.uint8).reshape(-1, HASH_BYTES))
        os.replace(lines, new / EXAMPLES)
        if len(header.sources) > MANY:
            write_listed(new, header.sources)
            header = replace(header, sources=())
        complete = replace(
            header, total=len(kept), kept=int(kept.sum()), num_media=len(values["keys"]), stamp=_stamp(new)
        )
        complete.write(new)
        _take_over(folder, new, complete.stamp)
    return complete


def _stamp(folder: Path) -> str:
    """Digest of all files: a part that is written again as it was keeps its stamp."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + content_hash(MediaSource(file)))
    return digest.hexdigest()


def _take_over(old: Path, new: Path, stamp: str) -> None:
    """Takes over what was counted for models, where the part is as it was."""
    try:
        if not (old / HEADER).exists() or IndexHeader.read(old).stamp != stamp:
            return
    except DataError:
        return
    for file in old.glob(f"{SIZES_NAME}*"):
        shutil.copyfile(file, new / file.name)


def _save(folder: Path, name: str, values: NDArray[Any]) -> None:
    with (folder / f"{name}.npy").open("wb") as file:
        np.save(file, values, allow_pickle=False)
