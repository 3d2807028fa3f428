"""Decides which rows are put into quarantine, and why.

Shapes: N rows, M media.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.index.layout import Status
from speechlmm_core.errors import MediaError
from speechlmm_core.media.audio import MAX_DURATION_S as LONGEST_AUDIO
from speechlmm_core.media.audio_lengths import segment_bounds
from speechlmm_core.media.video import MAX_DURATION_S as LONGEST_VIDEO
from speechlmm_train.prepare.known import Records
from speechlmm_train.prepare.listing import KINDS, Listing
from speechlmm_train.prepare.media import MICROSECONDS
from speechlmm_train.prepare.settings import Settings


@dataclass
class Verdict:
    """What became of the rows of a part."""

    seconds: NDArray[np.float64]
    """(N,) seconds of media."""
    status: NDArray[np.uint8]
    """(N,) `Status`."""
    kept: NDArray[np.bool_]
    """(N,) rows that are used: those in order and, for evaluation, all."""
    details: dict[int, str]
    """What was found, by row."""
    clipped: int = 0
    """Rows with many samples at full scale; they are used."""


def decide(
    listing: Listing,
    records: Records,
    found: NDArray[np.bool_],
    faults: Mapping[int, str],
    settings: Settings,
    *,
    training: bool,
) -> Verdict:
    """Decides about the rows of a part.

    Args:
        listing: The rows.
        records: (M,) what was found of their media.
        found: (M,) whether anything was.
        faults: Why media cannot be used, by their key.
        settings: The limits.
        training: Whether rows are for training; sets for evaluation are kept whole, as what cannot be loaded is an
            empty answer there, and scores on less are not comparable.
    """
    return _Decision(listing, records, found, faults, settings).run(training=training)


class _Decision:
    def __init__(
        self,
        listing: Listing,
        records: Records,
        found: NDArray[np.bool_],
        faults: Mapping[int, str],
        settings: Settings,
    ) -> None:
        self.listing, self.records, self.found = listing, records, found
        self.faults, self.settings = faults, settings
        self.status = np.zeros(listing.count, np.uint8)
        self.details: dict[int, str] = {}
        self.owners = np.repeat(np.arange(listing.count), np.diff(listing.media_starts))  # (M,)

    def run(self, *, training: bool) -> Verdict:
        listing = self.listing
        for row, fault in listing.row_faults.items():
            self.put(row, Status.RECORD, fault)
        seconds_of_media = self.measure()
        seconds = np.bincount(self.owners, seconds_of_media, minlength=listing.count).astype(np.float64)
        self.lengths(seconds_of_media, seconds)
        self.silence()
        for row in np.flatnonzero(listing.empty):
            self.put(int(row), Status.EMPTY_TEXT, "the answer has no characters")
        self.texts(seconds)
        self.duplicates()
        kept = self.status == Status.OK if training else np.ones(listing.count, np.bool_)
        return Verdict(seconds, self.status, kept, self.details, self.count_clipped(kept))

    def put(self, row: int, status: Status, detail: str) -> None:
        """Notes the first reason of a row."""
        if self.status[row] == Status.OK:
            self.status[row] = status
            self.details[row] = detail

    def measure(self) -> NDArray[np.float64]:
        """(M,) seconds of each medium, or of the segment of it that is used."""
        listing, records = self.listing, self.records
        for number in np.flatnonzero(~self.found):
            fault = listing.media_faults.get(int(number)) or self.faults.get(int(listing.keys[number]), "not read")
            self.put(int(self.owners[number]), Status.UNREADABLE, fault)
        seconds = np.zeros(len(records))
        known = self.found & (records["sampling_rate"] > 0)
        seconds[known] = records["num_samples"][known] / records["sampling_rate"][known]
        for number in np.flatnonzero(known & ~np.isnan(listing.segments).all(axis=1)):
            start, end = (None if np.isnan(at) else float(at) for at in listing.segments[number])
            count, rate = int(records["num_samples"][number]), int(records["sampling_rate"][number])
            try:
                first, last = segment_bounds(count, rate, start, end, name="the medium")
                seconds[number] = (last - first) / rate
            except MediaError as exc:
                seconds[number] = 0.0
                self.put(int(self.owners[number]), Status.SEGMENT, str(exc))
        return seconds

    def lengths(self, of_media: NDArray[np.float64], of_rows: NDArray[np.float64]) -> None:
        video = (self.listing.kinds == KINDS["video"]) | (self.records["sampling_rate"] == MICROSECONDS)
        longest = np.where(video, LONGEST_VIDEO, LONGEST_AUDIO)
        for number in np.flatnonzero(of_media > longest):
            detail = f"{of_media[number]:.1f} s, more than the {longest[number]:g} s that are loaded"
            self.put(int(self.owners[number]), Status.TOO_LONG, detail)
        limit = self.settings.max_duration
        if limit is not None:
            for row in np.flatnonzero(of_rows > limit):
                self.put(int(row), Status.TOO_LONG, f"{of_rows[row]:.2f} s, more than {limit:g} s")

    def silence(self) -> None:
        # NaN, where nothing was decoded, compares as false.
        for number in np.flatnonzero(self.found & (self.records["peak"] < self.settings.silence)):
            peak = float(self.records["peak"][number])
            self.put(int(self.owners[number]), Status.SILENT, f"greatest amplitude {peak:.1e} of full scale")

    def texts(self, seconds: NDArray[np.float64]) -> None:
        words, characters = self.listing.spoken_words, self.listing.spoken_characters
        known = (seconds > 0) & (words >= 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            pace, density = words * 60 / seconds, characters / seconds
        for row in np.flatnonzero(known & (pace > self.settings.max_words_per_minute)):
            detail = f"{words[row]} words in {seconds[row]:.2f} s, {pace[row]:.0f} a minute"
            self.put(int(row), Status.WORDS_PER_MINUTE, detail)
        for row in np.flatnonzero(known & (density > self.settings.max_characters_per_second)):
            detail = f"{characters[row]} characters in {seconds[row]:.2f} s, {density[row]:.1f} a second"
            self.put(int(row), Status.LONG_TRANSCRIPT, detail)

    def duplicates(self) -> None:
        """Later rows with the same question about the same bytes, in the same segment."""
        listing = self.listing
        # A sum of hashes of (content, segment), which does not depend on the order of a row's media.
        segment = np.ascontiguousarray(np.nan_to_num(listing.segments, nan=-1.0)).view(np.uint64).reshape(-1, 2)
        content = np.ascontiguousarray(self.records["hash"]).view(np.uint64).reshape(-1, 2)
        mixed = _mix(content[:, 0] ^ _mix(content[:, 1] ^ _mix(segment[:, 0] ^ _mix(segment[:, 1]))))  # (M,)
        rows = listing.questions.copy()
        np.add.at(rows, self.owners, mixed)
        candidates = np.flatnonzero(self.status == Status.OK)
        _, first, inverse = np.unique(rows[candidates], return_index=True, return_inverse=True)
        firsts = candidates[first[inverse]]
        for row, original in zip(candidates[firsts != candidates], firsts[firsts != candidates], strict=True):
            self.put(int(row), Status.DUPLICATE, f"the same as row {int(original) + 1}")

    def count_clipped(self, kept: NDArray[np.bool_]) -> int:
        loud = self.found & (self.records["clipped"] >= self.settings.clipping)
        return int(np.count_nonzero(kept[np.unique(self.owners[loud])])) if loud.any() else 0


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, on arrays."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
