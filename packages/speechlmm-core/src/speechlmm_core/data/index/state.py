"""The state of files: whether they are still what was prepared. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from speechlmm_core.data.index.layout import HASH_BYTES
from speechlmm_core.media.source import MediaSource

BLOCK = 1 << 20


@dataclass(frozen=True)
class FileState:
    """A file that lists examples, as it was when they were prepared."""

    path: str
    """Where it is."""
    size: int
    """Bytes."""
    time: int
    """When it was changed last, in nanoseconds."""
    digest: str
    """BLAKE2b of its bytes; empty where they are too many."""

    @classmethod
    def of(cls, path: Path, *, hashed: bool = True) -> FileState:
        """The state of a file.

        Args:
            path: The file.
            hashed: Whether its bytes are read, so that a copy of it is known to be the same.

        Raises:
            OSError: It cannot be read.
        """
        status = path.stat()
        digest = content_hash(MediaSource(path)).hex() if hashed else ""
        return cls(str(path.absolute()), status.st_size, status.st_mtime_ns, digest)

    def changed(self) -> str | None:
        """What happened to the file since, or None. Its bytes are compared only where its time differs."""
        try:
            status = os.stat(self.path)
            if status.st_size != self.size:
                return f"{self.path} has changed: {status.st_size} bytes, {self.size} when it was prepared"
            if status.st_mtime_ns == self.time:
                return None
            if not self.digest or content_hash(MediaSource(Path(self.path))).hex() != self.digest:
                return f"{self.path} has changed since it was prepared"
        except FileNotFoundError:
            return f"{self.path} does not exist any more"
        except OSError as exc:
            return f"{self.path} cannot be read: {exc.strerror or exc}"
        return None


def content_hash(source: MediaSource) -> bytes:
    """BLAKE2b of a file's bytes, or of those of a part of it.

    Raises:
        OSError: The file cannot be read.
        MediaError: A table's cell cannot be read.
    """
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    if source.whole and source.path is not None:
        handle = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while block := os.read(handle, BLOCK):
                digest.update(block)
        finally:
            os.close(handle)
        return digest.digest()
    with source.open() as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.digest()
