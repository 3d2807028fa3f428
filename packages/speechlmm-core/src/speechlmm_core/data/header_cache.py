"""Lengths of media files, kept between runs by path, size and time. Imports no torch.

Of an audio file its header is kept, from which any segment's length at any rate follows. What other inputs make of
their files only their encoders know; the number of samples that they tell is kept for their settings and the item.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.checkpoint.atomic import atomic_write
from speechlmm_core.errors import MediaError, SpeechLMMError
from speechlmm_core.media.source import LOCATOR_KEYS, MediaSource, file_source, item_source

if TYPE_CHECKING:
    from speechlmm_core.interfaces.encoder import EncoderConfig

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
        self._block: dict[MediaSource, Header | MediaError] = {}
        self._counts: dict[int, int | SpeechLMMError] = {}

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

    def read(self, sources: Sequence[MediaSource], pool: Executor) -> None:
        """Gets the headers of files, or parts of them, ready for `length`: from the cache, or in threads from them."""
        found = list(pool.map(self._read, [sources[start : start + 64] for start in range(0, len(sources), 64)]))
        self._block = {}
        for source, key, header, is_new in (one for piece in found for one in piece):
            self._block[source] = header
            if not isinstance(header, MediaError):
                self._used[key] = header
                self._new |= is_new

    def give(self, known: Mapping[MediaSource, Header]) -> None:
        """Gets headers ready for `length` that are known already, beside those that were read last."""
        self._block.update(known)

    def count(self, items: Sequence[tuple[EncoderConfig, Mapping[str, Any]]], pool: Executor) -> None:
        """Gets the lengths of media that are no audio ready for `num_samples`: kept ones, or from their encoders."""
        keyed = {key: (encoder, item) for encoder, item in items if (key := _item_key(encoder, item)) is not None}
        self._counts = {}
        missing: list[int] = []
        for key in keyed:
            kept = self._kept(key)
            if kept is None:
                missing.append(key)
            else:
                self._used[key] = kept
                self._counts[key] = kept[0]
        for key, found in zip(missing, pool.map(lambda key: _count(*keyed[key]), missing), strict=True):
            self._counts[key] = found
            if isinstance(found, int):
                self._used[key] = (found, keyed[key][0].sampling_rate)
                self._new = True

    def num_samples(self, encoder: EncoderConfig, item: Mapping[str, Any]) -> int:
        """Samples of a medium that is no audio.

        Raises:
            MediaError: It cannot be used.
        """
        key = _item_key(encoder, item)
        found = _count(encoder, item) if key is None else self._counts[key]
        if isinstance(found, SpeechLMMError):
            raise found
        return found

    def length(self, item: Mapping[str, Any], sampling_rate: int) -> int:
        """Samples that an audio item has at ``sampling_rate``; its file is among those that were read last.

        Raises:
            MediaError: The file cannot be used, or the item's segment lies outside it, or it is too long.
        """
        from speechlmm_core.media.audio import MAX_DURATION_S, audio_item_length
        from speechlmm_core.media.audio_lengths import resampled_length, segment_bounds

        source = item_source(item)
        if source is None or source.path is None:
            return audio_item_length(item, sampling_rate)
        header = self._block[source]
        if isinstance(header, MediaError):
            raise header
        first, last = segment_bounds(*header, item.get("start"), item.get("end"), name=str(source))
        if last - first > MAX_DURATION_S * header[1]:
            raise MediaError(
                f"{source}: {(last - first) / header[1] / 60:.1f} minutes of audio, more than the limit of "
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

    def _read(self, sources: Sequence[MediaSource]) -> list[tuple[MediaSource, int, Header | MediaError, bool]]:
        from speechlmm_core.media.audio import audio_info

        found: list[tuple[MediaSource, int, Header | MediaError, bool]] = []
        for source in sources:
            key = 0
            try:
                key = _key(source.identity())
                kept = self._kept(key)
                if kept is not None:
                    found.append((source, key, kept, False))
                    continue
                info = audio_info(source.path if source.whole and source.path else source)
                found.append((source, key, (info.num_samples, info.sampling_rate), True))
            except MediaError as exc:
                found.append((source, key, exc, False))
            except (OSError, ValueError) as exc:
                found.append((source, key, MediaError(f"{source}: cannot be read: {exc}"), False))
        return found

    def _kept(self, key: int) -> Header | None:
        if key in self._used:
            return self._used[key]
        place = int(np.searchsorted(self._old["key"], np.uint64(key)))
        if place < len(self._old) and int(self._old["key"][place]) == key:
            return int(self._old["num_samples"][place]), int(self._old["sampling_rate"][place])
        return None


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _item_key(encoder: EncoderConfig, item: Mapping[str, Any]) -> int | None:
    """What decides a medium's length: the file, the part of it, the encoder's settings; None for what is no file."""
    source = file_source(item)
    if source is None:
        return None
    try:
        identity = source.identity()
    except (OSError, ValueError):
        return None
    part = {key: value for key, value in item.items() if key not in {*LOCATOR_KEYS, "transcript"}}
    settings = f"{_source(type(encoder).__module__)}\0{encoder.model_dump_json()}"
    return _key(f"{identity}\0{json.dumps(part, sort_keys=True, default=repr)}\0{settings}")


@lru_cache(maxsize=256)
def _source(module: str) -> str:
    """A module, and the versions of what computes the lengths in it."""
    found = [module]
    for name in ("speechlmm-core", module.partition(".")[0]):
        with suppress(PackageNotFoundError, ValueError):
            found.append(version(name))
    return " ".join(found)


def _count(encoder: EncoderConfig, item: Mapping[str, Any]) -> int | SpeechLMMError:
    try:
        return int(encoder.num_samples(dict(item)))
    except SpeechLMMError as exc:
        return exc
