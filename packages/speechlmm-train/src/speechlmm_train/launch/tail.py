"""The end of a log, and a log as it grows."""

from __future__ import annotations

import os
import threading
from pathlib import Path

_BLOCK = 1 << 16


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; of a progress bar, what it last showed. Empty if there is no log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _BLOCK))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    rows = [row.rstrip("\r").rpartition("\r")[2].rstrip() for row in text.split("\n")]
    return [row for row in rows if row][-lines:]


class Follower:
    """Copies what is written to a file to an open file descriptor, byte by byte, until it is stopped.

    Args:
        path: The file; it may not be there yet.
        target: The descriptor.
    """

    def __init__(self, path: Path, target: int) -> None:
        self._path = path
        self._target = target
        self._stopped = threading.Event()
        self._position = 0
        path.unlink(missing_ok=True)

    def run(self) -> None:
        """Copies until `stop`, and then what is left."""
        while not self._stopped.wait(0.1):
            self._copy()
        self._copy()

    def stop(self) -> None:
        """Lets `run` come to its end."""
        self._stopped.set()

    def _copy(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                while block := file.read(_BLOCK):
                    self._position += len(block)
                    while block:
                        block = block[os.write(self._target, block) :]
        except OSError:
            return  # not there yet, or nobody reads any more
