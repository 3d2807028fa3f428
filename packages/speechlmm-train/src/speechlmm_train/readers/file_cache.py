"""Where the user's cache keeps what is made of a file, once for its size and time. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from speechlmm_core.data.header_cache import cache_folder


def cached_file(path: Path, folder: str, ending: str, *, version: int | None = None) -> Path:
    """The path, in a folder of the cache, of what is made of a file as it is now.

    Args:
        path: The file.
        folder: Name of the cache's folder.
        ending: What follows the digest in the name.
        version: Of how it is made; another one is made anew.

    Raises:
        OSError: The file cannot be looked at.
    """
    status = path.stat()
    identity = f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}"
    if version is not None:
        identity = f"{version}\0{identity}"
    digest = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return cache_folder() / folder / f"{digest}{ending}"
