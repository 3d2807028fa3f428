"""What is read of one medium: its header, the hash of its bytes and, where it is decoded, how loud it is.

Runs in worker processes. Imports no torch.

Shapes: L samples, H stretches of 10 ms.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.index.state import content_hash
from speechlmm_core.errors import MediaError
from speechlmm_core.media.audio import audio_item_length
from speechlmm_core.media.audio_file import complete_audio_info, open_audio
from speechlmm_core.media.audio_lengths import segment_bounds
from speechlmm_core.media.source import MediaSource, item_source

STRETCHES = 100
"""Stretches of a second whose greatest amplitude is kept."""
FULL_SCALE = 0.999
MICROSECONDS = 1_000_000
Segment = tuple[float | None, float | None]
Header = tuple[int, int]


@dataclass(frozen=True)
class Medium:
    """A medium that is to be read."""

    number: int
    """How the caller knows it."""
    item: Mapping[str, Any]
    """Its content item."""
    state: tuple[int, int]
    """Size and time of its file as they were listed."""
    segments: tuple[Segment, ...] = ()
    """Parts of it whose loudness is asked for, in seconds; empty to decode nothing."""


@dataclass(frozen=True)
class Measured:
    """What was found."""

    number: int
    header: Header = (0, 0)
    """Number of samples and rate; zeros for what only an encoder can tell."""
    digest: bytes = b""
    """BLAKE2b of the bytes."""
    loudness: tuple[tuple[float, float], ...] = ()
    """Greatest amplitude and share of samples at full scale, for each segment."""
    fault: str | None = None
    """Why it cannot be used."""


def measure_all(media: Sequence[Medium]) -> list[Measured]:
    """Reads media, one after the other."""
    return [measure_medium(one) for one in media]


def measure_medium(medium: Medium) -> Measured:
    """Reads a medium; whatever is wrong with it is told and not raised."""
    try:
        return _measure(medium)
    except MediaError as exc:
        return Measured(medium.number, fault=_one_line(str(exc)))
    except (OSError, ValueError, TypeError, OverflowError, MemoryError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        return Measured(medium.number, fault=_one_line(f"{medium.item.get('path')}: cannot be read: {reason}"))


def _measure(medium: Medium) -> Measured:
    kind = str(medium.item.get("type", "audio"))
    source = item_source(medium.item, kind)
    if source is None:
        array = np.ascontiguousarray(medium.item["array"])
        given = medium.item.get("sampling_rate")
        rate = given if isinstance(given, int) else 1  # what it must be is checked below
        whole = {key: value for key, value in medium.item.items() if key not in ("start", "end")}
        length = audio_item_length(whole, rate) if kind == "audio" else 0
        return Measured(medium.number, (length, rate if length else 0), content_hash(MediaSource(data=array.tobytes())))
    source.check(f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} file")
    digest = content_hash(source)
    header, decode = _header(kind, source, medium.item)
    loudness = decode(medium.segments) if medium.segments and decode else ()
    if source.path is not None:
        status = os.stat(source.path)
        if (status.st_size, status.st_mtime_ns) != medium.state:
            raise MediaError(f"{source.path}: changed while it was read; prepare it again when it is complete")
    return Measured(medium.number, header, digest, tuple(loudness))


Decode = Callable[[Sequence[Segment]], Sequence[tuple[float, float]]]


def _header(kind: str, source: MediaSource, item: Mapping[str, Any]) -> tuple[Header, Decode | None]:
    """Length and rate, and what decodes the medium. An input of a name of its own may hold any kind of media."""
    if kind in {"audio", "video"}:
        return (_audio if kind == "audio" else _video)(source, item)
    for read in (_audio, _video):
        try:
            return read(source, item)
        except MediaError:
            continue
    return (0, 0), None


def _audio(source: MediaSource, _item: Mapping[str, Any]) -> tuple[Header, Decode]:
    info = complete_audio_info(source)
    return (info.num_samples, info.sampling_rate), lambda segments: loudness_of(source, segments)


def _video(source: MediaSource, item: Mapping[str, Any]) -> tuple[Header, Decode]:
    from speechlmm_core.media.video_source import source_of

    video = source_of(item)

    def decode(segments: Sequence[Segment]) -> list[tuple[float, float]]:
        for _ in video.frames(video.info.times):
            pass
        return [(float("nan"), float("nan"))] * len(segments)

    return (video.info.duration, MICROSECONDS), decode


def loudness_of(source: MediaSource, segments: Sequence[Segment]) -> list[tuple[float, float]]:
    """Greatest amplitude and share of samples at full scale of parts of an audio file, which is decoded once.

    Parts are rounded outwards to 10 ms.

    Raises:
        MediaError: The file is damaged or truncated, or its samples are no numbers.
    """
    reader = open_audio(source)
    try:
        info = reader.info
        hop = max(1, info.sampling_rate // STRETCHES)
        peaks, clipped, count = _stretches(reader.blocks(0, info.num_samples), hop)
    finally:
        reader.close()
    if count + reader.end_tolerance < info.num_samples:
        raise MediaError(
            f"{source}: truncated: {count / info.sampling_rate:.2f} s of {info.duration_s:.2f} s could be decoded; "
            "copy or download it again"
        )
    if not np.isfinite(peaks).all():
        raise MediaError(f"{source}: holds samples that are no numbers; convert or record it again")
    found: list[tuple[float, float]] = []
    for start, end in segments:
        try:
            first, last = segment_bounds(info.num_samples, info.sampling_rate, start, end, name=str(source))
        except MediaError:  # told apart from an unreadable file by who knows the rows
            found.append((float("nan"), float("nan")))
            continue
        part = slice(first // hop, -(-last // hop))
        found.append((min(2.0, float(peaks[part].max(initial=0.0))), float(clipped[part].sum()) / (last - first)))
    return found


def _stretches(blocks: Any, hop: int) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """Greatest amplitude (H,) and samples at full scale (H,) of stretches of ``hop`` samples, and samples in all."""
    peaks: list[NDArray[np.float32]] = []
    clipped: list[NDArray[np.int64]] = []
    rest = np.zeros(0, np.float32)
    count = 0
    for block in blocks:
        count += len(block)
        values = np.abs(np.concatenate([rest, block]) if len(rest) else block)
        whole = len(values) // hop * hop
        rest = values[whole:]
        table = values[:whole].reshape(-1, hop)  # (H, hop)
        if len(table):
            peaks.append(table.max(axis=1))
            clipped.append(np.count_nonzero(table >= FULL_SCALE, axis=1))
    if len(rest):
        peaks.append(rest.max(keepdims=True))
        clipped.append(np.array([np.count_nonzero(rest >= FULL_SCALE)]))
    empty = not peaks
    return (
        np.zeros(0, np.float32) if empty else np.concatenate(peaks),
        np.zeros(0, np.int64) if empty else np.concatenate(clipped),
        count,
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
