"""Compressed tables, unpacked into the user's cache: only what is not compressed can be read at random."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from speechlmm_core.checkpoint.atomic import atomic_write
from speechlmm_core.errors import DataError
from speechlmm_train.readers.file_cache import cached_file

BLOCK = 1 << 20
PLAIN_BYTES = 64 << 20
"""Up to this size a file may unpack to any multiple of its own."""
MAX_RATIO = 200
"""Text packs to a tenth; what unpacks to more than this was made to fill a disk."""


def unpacked(path: Path) -> Path:
    """The unpacked form of a ``.gz`` file, which is made once for its size and time; any other file itself.

    Raises:
        DataError: The file is damaged, or unpacks to far more than a table can.
        OSError: It cannot be read, or the cache not be written to.
    """
    if path.suffix.lower() != ".gz":
        return path
    target = cached_file(path, "unpacked", f"-{path.stem[-100:]}")
    if target.is_file():
        return target
    limit = max(PLAIN_BYTES, MAX_RATIO * path.stat().st_size)
    try:
        with atomic_write(target) as temporary, gzip.open(path) as packed, temporary.open("wb") as file:
            while block := packed.read(BLOCK):
                file.write(block)
                if file.tell() > limit:
                    raise DataError(
                        f"{path}: unpacks to more than {limit >> 20} MiB, {MAX_RATIO} times its size: no table does; "
                        "unpack it yourself if you trust it"
                    )
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise DataError(f"{path}: truncated or damaged ({exc}); copy or download it again") from exc
    return target
