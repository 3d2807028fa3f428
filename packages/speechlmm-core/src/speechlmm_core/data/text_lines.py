"""The lines of a text file, none of which may fill the memory. Imports no torch."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import IO

from speechlmm_core.errors import DataError

MAX_LINE = 64 << 20
"""Bytes of a line; a file without line breaks, such as a device, has none."""


def check_regular(path: str | os.PathLike[str]) -> None:
    """Makes sure that a path is that of a file.

    Raises:
        OSError: There is nothing, or a device, a pipe or a folder.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is not a file but a folder or a device")


def each_line(file: IO[bytes], name: str) -> Iterator[bytes]:
    """The lines of a file, with their ends.

    Args:
        file: The file, at its start.
        name: How messages call it.

    Raises:
        DataError: A line is too long to be one.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise DataError(f"{name}:{number}: a line of over {MAX_LINE >> 20} MiB; this is no text by lines")
        yield line
