"""A part of a file, or bytes in memory, as a file of their own, for libraries that read files. Imports no torch.

Unlike `io.BytesIO` it refuses no seek, as those that damaged media ask for must not raise inside a C library's
callback: like the operating system's file, it stays where it is.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

Buffer = bytes | memoryview
PIECE = 1 << 30
"""Most bytes of one read; more are read in several."""


class PartFile(io.RawIOBase):
    """A read-only file of ``size`` bytes.

    Args:
        read_into: Fills a buffer from a position of the part on, and returns the number of bytes.
        size: Bytes of the part.
        name: What it is called; libraries may look at the ending.
        close: What is done in the end.
    """

    def __init__(
        self,
        read_into: Callable[[memoryview, int], int],
        size: int,
        *,
        name: str | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.name = name or ""
        self._read_into, self._size, self._close = read_into, size, close
        self._position = 0

    @classmethod
    def of_file(cls, path: Path, offset: int, size: int, *, name: str | None = None) -> BinaryIO:
        """``size`` bytes of a file from ``offset`` on.

        Raises:
            OSError: The file cannot be opened.
        """
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

        def read_into(buffer: memoryview, position: int) -> int:
            return os.preadv(handle, [buffer[:PIECE]], offset + position)

        return cast(BinaryIO, cls(read_into, size, name=name, close=lambda: os.close(handle)))

    @classmethod
    def of_bytes(cls, data: Buffer, *, name: str | None = None) -> BinaryIO:
        """Bytes in memory; they are not copied."""
        view = memoryview(data).cast("B")

        def read_into(buffer: memoryview, position: int) -> int:
            piece = view[position : position + len(buffer)]
            buffer[: len(piece)] = piece
            return len(piece)

        return cast(BinaryIO, cls(read_into, len(view), name=name))

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to a position, which may lie after the end; does nothing where it would lie before the start."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}.get(whence)
        if start is not None and start + offset >= 0:
            self._position = start + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Bytes from the position on; no more memory is taken than there are, whatever is asked for."""
        left = max(0, self._size - self._position)
        buffer = bytearray(left if size is None or size < 0 else min(size, left))
        return bytes(memoryview(buffer)[: self.readinto(buffer)])

    def readinto(self, buffer: Any, /) -> int:
        """Fills a buffer as far as there are bytes."""
        view = memoryview(buffer).cast("B")
        wanted = view[: max(0, min(len(view), self._size - self._position))]
        done = 0
        while done < len(wanted):
            count = self._read_into(wanted[done:], self._position)
            if not count:
                break
            done += count
            self._position += count
        return done

    def close(self) -> None:
        """Closes the file."""
        if not self.closed and self._close is not None:
            self._close()
        super().close()
