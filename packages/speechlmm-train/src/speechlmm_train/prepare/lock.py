"""Keeps two preparations of the same index apart."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from speechlmm_core.errors import DataError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder's lock, which ends with the process, however it ends.

    Raises:
        DataError: Another process holds it.
        OSError: The folder cannot be written to.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise DataError(
                f"{folder}: another `speechlmm-train prepare` (process {owner}) is writing this index; wait for it, or "
                "give another folder with --index-dir"
            ) from exc
        except OSError as exc:
            if exc.errno not in {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}:  # some network file systems have no locks
                raise
        with suppress(OSError):  # only for the message above
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)
