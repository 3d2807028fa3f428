"""Seconds of media of examples, from the headers of their files. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.examples import Examples
from speechlmm_core.data.header_cache import HeaderCache, cache_folder
from speechlmm_core.data.index.rows import media_of
from speechlmm_core.errors import SpeechLMMError
from speechlmm_core.media.source import item_source

BLOCK = 4096
THREADS = 8
SAMPLING_RATE = 48_000
"""Rate at which lengths are counted; a duration is right to half of its step."""


def seconds_of(examples: Examples, indices: Sequence[int] | NDArray[np.int64]) -> Iterator[float | SpeechLMMError]:
    """The duration of each example, or what is wrong with its media.

    Headers are kept in the user's cache, where those for training are kept as well.
    """
    sources = [str(path.absolute()) for path in map(Path, examples.sources) if path.is_file()]
    headers = HeaderCache.open(cache_folder(), "\0".join(sources) or None)
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(indices), BLOCK):
            items = [media_of(examples.example(int(index))) for index in indices[start : start + BLOCK]]
            files = {file for one in items for item in one if (file := item_source(item)) and file.path is not None}
            headers.read(sorted(files, key=str), pool)
            for one in items:
                yield _seconds(one, headers)
    headers.save()


def _seconds(items: Sequence[Mapping[str, Any]], headers: HeaderCache) -> float | SpeechLMMError:
    try:
        return float(sum(_length(item, headers) for item in items))
    except SpeechLMMError as exc:
        return exc


def _length(item: Mapping[str, Any], headers: HeaderCache) -> float:
    start, end = item.get("start"), item.get("end")
    if end is not None:
        return float(end) - float(start or 0.0)
    return headers.length(item, SAMPLING_RATE) / SAMPLING_RATE
