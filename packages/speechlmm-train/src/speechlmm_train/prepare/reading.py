"""Reads the media that are not known yet, each once, however many rows and parts use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.index.rows import decode_example, media_of
from speechlmm_train.prepare.known import RECORD, Journal, Known, Records, joined
from speechlmm_train.prepare.listing import Listing
from speechlmm_train.prepare.media import Measured, Medium, Segment
from speechlmm_train.prepare.opening import OpenPart
from speechlmm_train.prepare.pool import MediaPool

CHUNK_MEDIA = 64
CHUNK_BYTES = 32 << 20
"""A chunk is as much as is lost when the preparation is killed."""
CHUNK_BYTES_FULL = 4 << 20


@dataclass(frozen=True)
class Listed:
    """A part with its rows, and the file of their lines."""

    open: OpenPart
    rows: Listing
    lines: Path


@dataclass
class ReadResult:
    """What is known after reading."""

    known: Known
    """Everything that could be read, now or before."""
    faults: dict[int, str]
    """Why media cannot be used, by their key."""
    num_read: int = 0
    """Media that were read now."""
    hours: float = 0.0
    """Hours of media that were read now."""
    seconds: float = 0.0
    """Seconds that it took."""


def found_for(rows: Listing, known: Known, *, full: bool) -> tuple[Records, NDArray[np.bool_]]:
    """(M,) what is known of each medium, and whether anything is; where decoding is asked for, only of decoded ones."""
    records, found = known.find(rows.measured, decoded=True)
    if not full:
        plain, there = known.find(rows.keys, decoded=False)
        plain["measured"], plain["peak"], plain["clipped"] = 0, np.nan, np.nan
        records = np.where(found, records, plain)
        found |= there
    found = found & (rows.keys != 0)
    records[~found] = np.zeros((), RECORD)
    records["peak"][~found] = np.nan
    return records, found


def read_missing(
    parts: Sequence[Listed],
    before: Records,
    journal: Journal,
    *,
    full: bool,
    jobs: int,
    progress: Callable[[int], Callable[[int, float], None]],
) -> ReadResult:
    """Reads what is not known.

    Args:
        parts: All parts.
        before: What is known from before, beside the journal.
        journal: Takes what is found.
        full: Whether media are decoded.
        jobs: Processes.
        progress: Given the number of media to read, what is told how many were read, and how many hours.

    Raises:
        OSError: The journal cannot be written.
    """
    known = Known(joined([before, journal.records]))
    wanted = _Wanted(parts, known, full=full)
    report = progress(wanted.count)
    result = ReadResult(known, {})
    started = time.monotonic()
    new: list[Records] = []
    if wanted.count:
        with MediaPool(min(jobs, wanted.count)) as pool:
            for chunk in pool.run(wanted.chunks()):
                records = wanted.records(chunk, result.faults)
                journal.append(records)
                new.append(records)
                hours = sum(one.header[0] / one.header[1] for one in chunk if one.header[1]) / 3600
                result.num_read += len(chunk)
                result.hours += hours
                report(len(chunk), hours)
    result.seconds = time.monotonic() - started
    result.known = Known(joined([before, journal.records, *new]))
    return result


class _Wanted:
    """The media that are to be read: one for each file, or part of one, with the segments that are asked for."""

    def __init__(self, parts: Sequence[Listed], known: Known, *, full: bool) -> None:
        self.parts, self.full = parts, full
        self.first: list[NDArray[np.int64]] = []
        self.keys: list[int] = []
        self.segments: dict[int, dict[int, Segment]] = {}
        taken = np.zeros(0, np.uint64)
        for listed in parts:
            rows = listed.rows
            _, found = found_for(rows, known, full=full)
            missing = np.flatnonzero(~found & (rows.keys != 0))
            if full:
                self._ask(rows, missing)
            keys, first = np.unique(rows.keys[missing], return_index=True)
            new = ~np.isin(keys, taken)
            self.first.append(np.sort(missing[first[new]]))
            taken = np.concatenate([taken, keys[new]])
        self.count = len(taken)

    def _ask(self, rows: Listing, missing: NDArray[np.int64]) -> None:
        for number in missing:
            start, end = (None if np.isnan(at) else float(at) for at in rows.segments[number])
            asked = self.segments.setdefault(int(rows.keys[number]), {})
            asked[int(rows.measured[number])] = (start, end)

    def chunks(self) -> Iterator[list[Medium]]:
        """Media to read, a chunk at a time."""
        most = CHUNK_BYTES_FULL if self.full else CHUNK_BYTES
        chunk: list[Medium] = []
        size = 0
        for listed, numbers in zip(self.parts, self.first, strict=True):
            for number, item in _items(listed, numbers):
                rows = listed.rows
                key = int(rows.keys[number])
                self.keys.append(key)
                asked = tuple(self.segments.get(key, {}).values())
                state = (int(rows.sizes[number]), int(rows.times[number]))
                chunk.append(Medium(len(self.keys) - 1, item, state, asked))
                size += state[0]
                if len(chunk) >= CHUNK_MEDIA or size >= most:
                    yield chunk
                    chunk, size = [], 0
        if chunk:
            yield chunk

    def records(self, chunk: Sequence[Measured], faults: dict[int, str]) -> Records:
        """What was found, as it is kept; what cannot be used is not, and is tried again the next time."""
        rows: list[tuple[Any, ...]] = []
        for one in chunk:
            key = self.keys[one.number]
            if one.fault is not None:
                faults[key] = one.fault
                continue
            digest = np.frombuffer(one.digest, np.uint8)
            if self.full:
                loudness = one.loudness or [(np.nan, np.nan)] * len(self.segments[key])
                for measured, (peak, clipped) in zip(self.segments[key], loudness, strict=True):
                    rows.append((key, measured, *one.header, peak, clipped, digest, 0))
            else:
                rows.append((key, 0, *one.header, np.nan, np.nan, digest, 0))
        return np.array(rows, RECORD)


def _items(listed: Listed, numbers: NDArray[np.int64]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Content items of media by their numbers, from the lines that were written, or from the reader."""
    rows = listed.rows
    owners = np.searchsorted(rows.media_starts, numbers, side="right") - 1
    with listed.lines.open("rb") as file:
        last, items = -1, list[dict[str, Any]]()
        for number, row in zip(numbers.tolist(), owners.tolist(), strict=True):
            if row != last:
                if rows.stored:
                    file.seek(int(rows.lines[row]))
                    items = media_of(decode_example(file.readline(), rows.root))
                else:
                    items = media_of(listed.open.examples.example(row))
                last = row
            yield number, items[number - int(rows.media_starts[row])]


def identifier(listed: Listed, row: int) -> str:
    """The name of a row's example."""
    if not listed.rows.stored:
        return listed.open.examples.example(row).id if row not in listed.rows.row_faults else str(row + 1)
    with listed.lines.open("rb") as file:
        file.seek(int(listed.rows.lines[row]))
        return decode_example(file.readline()).id
