"""Loads audio: any common format, rate and channel count becomes mono fp32 at the rate asked for.

WAV, FLAC and Ogg Opus are read by libsndfile, everything else (MP3, m4a, webm, the sound of a video, …) by FFmpeg.
Channels are averaged. Resampling is soxr's HQ recipe, whose low-pass filter removes what lies above the new Nyquist
frequency. A segment is decoded by seeking; where it is resampled, what lies outside it counts as silence.

Shapes: L samples, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from speechlmm_core.errors import MediaError
from speechlmm_core.media.audio_file import audio_info, open_audio
from speechlmm_core.media.audio_lengths import resampled_length, segment_bounds
from speechlmm_core.media.medium import Medium
from speechlmm_core.media.reader import BLOCK_SAMPLES, AudioInfo, Block
from speechlmm_core.media.source import MediaSource, as_source, item_source, locator_fault

__all__ = [
    "MAX_DURATION_S",
    "AudioInfo",
    "audio_info",
    "audio_item_length",
    "load_audio",
    "load_audio_item",
    "resampled_length",
]

MAX_DURATION_S = 2 * 3600.0
"""Longest audio that is loaded unless the caller says otherwise; two hours at 16 kHz are 460 MB."""
LOUDEST = 1e9
"""Full scale is 1; larger samples are damaged, or integers that were stored as floats."""


def load_audio_item(item: Mapping[str, Any], sampling_rate: int) -> Medium:
    """Loads the audio of a content item.

    Args:
        item: ``{"type": "audio", "path": ..., "start"?: ..., "end"?: ...}``, with ``offset`` and ``size`` (bytes) or
            ``row`` and ``column`` for a part of the file, ``bytes`` for ``path``, and ``channel`` (from 0) for one of
            several; or ``{"type": "audio", "array": ..., "sampling_rate": ...}`` with (L,) or (C, L) samples, floats or
            integers in their full range, and ``channel``.
        sampling_rate: Rate of the result in Hz.

    Returns:
        The (L,) samples at ``sampling_rate``.

    Raises:
        MediaError: The item names no audio, or its audio cannot be used.
    """
    start, end = item.get("start"), item.get("end")
    source = item_source(item)
    if source is not None:
        return load_audio(source, sampling_rate=sampling_rate, start=start, end=end)
    name = "in-memory audio"
    values, rate = _array_samples(item)
    first, last = segment_bounds(len(values), rate, start, end, name=name)
    _check_duration(last - first, rate, MAX_DURATION_S, name)
    pieces = (values[at : min(at + BLOCK_SAMPLES, last)] for at in range(first, last, BLOCK_SAMPLES))
    return _medium(_collect(pieces, last - first, rate, sampling_rate, name=name, tolerance=0), sampling_rate)


def load_audio(
    path: str | Path | MediaSource,
    *,
    sampling_rate: int,
    start: float | None = None,
    end: float | None = None,
    max_duration_s: float = MAX_DURATION_S,
) -> Medium:
    """Loads an audio file, or the segment of it from ``start`` to ``end`` seconds.

    Args:
        path: File (``~`` is the home folder), or a part of one.
        sampling_rate: Rate of the result in Hz.
        start: Start of the segment in seconds; the file's start by default.
        end: End of the segment in seconds; the file's end by default.
        max_duration_s: Longer audio is refused before anything is decoded.

    Returns:
        The (L,) samples; L is `resampled_length` of the header's number of samples.

    Raises:
        MediaError: The file is missing, not audio, empty, truncated, damaged or too long, or has no such segment.
    """
    file = as_source(path)
    reader = open_audio(file)
    try:
        info = reader.info
        first, last = segment_bounds(info.num_samples, info.sampling_rate, start, end, name=str(file))
        _check_duration(last - first, info.sampling_rate, max_duration_s, str(file))
        values = _collect(
            reader.blocks(first, last),
            last - first,
            info.sampling_rate,
            sampling_rate,
            name=str(file),
            tolerance=reader.end_tolerance if last == info.num_samples else 0,
        )
    finally:
        reader.close()
    return _medium(values, sampling_rate)


def audio_item_length(item: Mapping[str, Any], sampling_rate: int) -> int:
    """Number of samples that `load_audio_item` returns for the item, from the file's header alone.

    Raises:
        MediaError: As `load_audio_item`, for what the header can tell.
    """
    source = item_source(item)
    if source is not None:
        info, name = audio_info(source), str(source)
        num_samples, rate = info.num_samples, info.sampling_rate
    else:
        values, rate = _array_samples(item)
        num_samples, name = len(values), "in-memory audio"
    first, last = segment_bounds(num_samples, rate, item.get("start"), item.get("end"), name=name)
    return resampled_length(last - first, rate, sampling_rate)


def _array_samples(item: Mapping[str, Any]) -> tuple[Block, int]:
    rate = item.get("sampling_rate")
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or rate <= 0:
        raise MediaError(f"expected an in-memory audio item with a whole `sampling_rate` in Hz, got {rate!r}")
    array = item["array"]
    values = array.detach().float().cpu().numpy() if _is_float_tensor(array) else np.asarray(array)
    if values.dtype.kind == "i":
        values = values.astype(np.float32) / -float(np.iinfo(values.dtype).min)
    elif values.dtype.kind != "f":
        raise MediaError(f"expected in-memory audio of floats or signed integers, got {values.dtype}")
    channel = item.get("channel")
    if values.ndim == 2 and values.shape[0] <= values.shape[1]:
        _check_channel(item, len(values))
        values = values.astype(np.float32).mean(axis=0) if channel is None else values[channel]  # (C, L) -> (L,)
    elif values.ndim == 1:
        _check_channel(item, 1)
    if values.ndim != 1 or not len(values):
        raise MediaError(f"expected in-memory audio of shape (samples,) or (channels, samples), got {values.shape}")
    return values.astype(np.float32, copy=False), int(rate)


def _check_channel(item: Mapping[str, Any], num_channels: int) -> None:
    if slip := locator_fault(item):
        raise MediaError(f"in-memory audio: {slip}")
    if (channel := item.get("channel")) is not None and channel >= num_channels:
        raise MediaError(f"in-memory audio: there is no channel {channel}, as the audio has {num_channels}, from 0 on")


def _is_float_tensor(array: Any) -> bool:
    # bfloat16 has no NumPy counterpart, so floating tensors are converted by torch; torch is not imported for a check.
    return hasattr(array, "detach") and array.is_floating_point()


def _check_duration(num_samples: int, rate: int, max_duration_s: float, name: str) -> None:
    if num_samples > max_duration_s * rate:
        raise MediaError(
            f"{name}: {num_samples / rate / 60:.1f} minutes of audio, more than the limit of "
            f"{max_duration_s / 60:.1f} minutes; ask for a segment of it by `start` and `end` (seconds)"
        )


def _collect(blocks: Iterable[Block], length: int, rate: int, to_rate: int, *, name: str, tolerance: int) -> Block:
    """Fills the (L',) result from blocks that hold ``length`` samples; up to ``tolerance`` missing ones are silence."""
    out = np.zeros(resampled_length(length, rate, to_rate), np.float32)
    resampler = soxr.ResampleStream(rate, to_rate, 1, dtype="float32", quality="HQ") if rate != to_rate else None
    read = written = 0
    for block in blocks:
        if not max(block.max(initial=0), -block.min(initial=0)) < LOUDEST:
            _refuse(block, read, rate, name)
        read += len(block)
        ready = resampler.resample_chunk(block) if resampler else block
        out[written : written + len(ready)] = ready[: len(out) - written]
        written = min(len(out), written + len(ready))
    if read < length - tolerance:
        raise MediaError(
            f"{name}: truncated: {length / rate:.3f} s were expected from its header and only {read / rate:.3f} s "
            "could be decoded; copy or download it again"
        )
    if resampler:
        # Silence after the end brings out the filter's tail, and the last sample where the length was rounded up.
        ready = resampler.resample_chunk(np.zeros(-(-rate // to_rate) + 1, np.float32), last=True)
        out[written : written + len(ready)] = ready[: len(out) - written]
    return out


def _refuse(block: Block, read: int, rate: int, name: str) -> None:
    """Says which sample of a block cannot be used.

    Raises:
        MediaError: Always.
    """
    usable = np.abs(block) < LOUDEST
    at = int(np.argmin(usable))
    what = "not a finite number" if not np.isfinite(block[at]) else f"{block[at]:.3g}, where full scale is 1"
    raise MediaError(f"{name}: the sample at {(read + at) / rate:.3f} s is {what}; mend or leave out this audio")


def _medium(values: Block, sampling_rate: int) -> Medium:
    import torch

    return Medium(torch.from_numpy(values), sampling_rate)
