"""Lengths of audio files from their headers, kept between runs by path, size and time. Imports no torch."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.checkpoint.atomic import atomic_write
from speechlmm_core.errors import MediaError

logger = logging.getLogger(__name__)

ENTRY = np.dtype([("key", np.uint64), ("num_samples", np.int64), ("sampling_rate", np.int64)])
Header = tuple[int, int]


def cache_folder() -> Path:
    """The user's cache: `$SPEECHLMM_CACHE`, or `speechlmm` under `$XDG_CACHE_HOME` or `~/.cache`."""
    if named := os.environ.get("SPEECHLMM_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "speechlmm"


class HeaderCache:
    """The headers of a dataset's audio files.

    Args:
        file: Where they are kept; None to keep nothing.
        entries: What was kept, sorted by key.
    """

    def __init__(self, file: Path | None, entries: NDArray[Any]) -> None:
        self.file = file
        self._old = entries
        self._used: dict[int, Header] = {}
        self._new = False
        self._block: dict[str, Header | MediaError] = {}

    @classmethod
    def open(cls, folder: Path, source: str | None) -> HeaderCache:
        """The cache of a dataset; ``source`` names it, and without a name nothing is kept."""
        empty = np.zeros(0, ENTRY)
        if source is None:
            return cls(None, empty)
        file = folder / f"headers-{hashlib.blake2b(source.encode(), digest_size=16).hexdigest()}.npy"
        try:
            entries = np.load(file, allow_pickle=False)
        except FileNotFoundError:
            return cls(file, empty)
        except (OSError, ValueError, EOFError) as exc:
            logger.info("cannot read %s, which is written anew: %s", file, exc)
            return cls(file, empty)
        return cls(file, entries if entries.dtype == ENTRY and entries.ndim == 1 else empty)

    def read(self, paths: Sequence[str], pool: Executor) -> None:
        """Gets the headers of files ready for `length`: from the cache, or in threads from the files."""
        found = list(pool.map(self._read, [paths[start : start + 64] for start in range(0, len(paths), 64)]))
        self._block = {}
        for path, key, header, is_new in (one for piece in found for one in piece):
            self._block[path] = header
            if not isinstance(header, MediaError):
                self._used[key] = header
                self._new |= is_new

    def length(self, item: Mapping[str, Any], sampling_rate: int) -> int:
        """Samples that an audio item has at ``sampling_rate``; its file is among those that were read last.

        Raises:
            MediaError: The file cannot be used, or the item's segment lies outside it, or it is too long.
        """
        from speechlmm_core.media.audio import MAX_DURATION_S, audio_item_length
        from speechlmm_core.media.audio_lengths import resampled_length, segment_bounds

        if "path" not in item:
            return audio_item_length(item, sampling_rate)
        path = str(item["path"])
        header = self._block[path]
        if isinstance(header, MediaError):
            raise header
        first, last = segment_bounds(*header, item.get("start"), item.get("end"), name=path)
        if last - first > MAX_DURATION_S * header[1]:
            raise MediaError(
                f"{path}: {(last - first) / header[1] / 60:.1f} minutes of audio, more than the limit of "
                f"{MAX_DURATION_S / 60:.1f} minutes; use a segment of it by `start` and `end` (seconds)"
            )
        return resampled_length(last - first, header[1], sampling_rate)

    def save(self) -> None:
        """Keeps what was read; a folder that cannot be written to costs the next run its time and nothing else."""
        if self.file is None or not self._new:
            return
        rows = [(key, *header) for key, header in sorted(self._used.items())]
        self.store(self.file, np.array(rows, ENTRY))

    @staticmethod
    def store(file: Path, array: NDArray[Any]) -> None:
        """Writes an array into the cache, whole or not at all."""
        try:
            with atomic_write(file) as temporary, temporary.open("wb") as handle:
                np.save(handle, array, allow_pickle=False)
        except OSError as exc:
            logger.warning("cannot keep lengths in %s (they will be read again): %s", file, exc)

    def _read(self, paths: Sequence[str]) -> list[tuple[str, int, Header | MediaError, bool]]:
        from speechlmm_core.media.audio import audio_info

        found: list[tuple[str, int, Header | MediaError, bool]] = []
        for path in paths:
            key = 0
            try:
                status = Path(path).stat()
                text = f"{Path(path).absolute()}\0{status.st_size}\0{status.st_mtime_ns}"
                key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
                kept = self._kept(key)
                if kept is not None:
                    found.append((path, key, kept, False))
                    continue
                info = audio_info(path)
                found.append((path, key, (info.num_samples, info.sampling_rate), True))
            except MediaError as exc:
                found.append((path, key, exc, False))
            except (OSError, ValueError) as exc:
                found.append((path, key, MediaError(f"{path}: cannot be read: {exc}"), False))
        return found

    def _kept(self, key: int) -> Header | None:
        if key in self._used:
            return self._used[key]
        place = int(np.searchsorted(self._old["key"], np.uint64(key)))
        if place < len(self._old) and int(self._old["key"][place]) == key:
            return int(self._old["num_samples"][place]), int(self._old["sampling_rate"][place])
        return None
