"""Lengths of audio: the only place where the number of samples that loading returns is computed.

The batch plan computes lengths from headers with these functions and the loader fills exactly as many samples, so that
the two always agree. Imports no torch.
"""

from __future__ import annotations

import math
from typing import Any

from speechlmm_core.errors import MediaError
from speechlmm_core.lengths import Length, ceil_div

END_TOLERANCE_S = 0.05
"""How far past the end of a file a segment may reach: manifests round their times."""


def resampled_length(num_samples: Length, from_rate: int, to_rate: int) -> Length:
    """Number of samples after resampling: every output sample whose time lies before the end of the input.

    ``ceil(num_samples * to_rate / from_rate)``, so that one sample never becomes none.
    """
    if from_rate == to_rate:
        return num_samples
    divisor = math.gcd(from_rate, to_rate)
    return ceil_div(num_samples * (to_rate // divisor), from_rate // divisor)


def segment_bounds(
    num_samples: int, sampling_rate: int, start: float | None, end: float | None, *, name: str, what: str = "audio"
) -> tuple[int, int]:
    """First and last (exclusive) sample of the segment from ``start`` to ``end`` seconds, at the file's own rate.

    An ``end`` up to `END_TOLERANCE_S` past the end of the file is taken as its end.

    Raises:
        MediaError: The file is empty; the times are no numbers, in the wrong order, or outside it.
    """
    if num_samples <= 0:
        raise MediaError(f"{name}: the {what} lasts no time at all; leave it out, or give another file")
    duration = num_samples / sampling_rate
    first_s, last_s = _seconds("start", start, 0.0, name), _seconds("end", end, duration, name)
    if first_s >= last_s and start is not None and end is not None:
        raise MediaError(f"{name}: the segment's start ({start!r} s) must lie before its end ({end!r} s)")
    if first_s >= duration:
        raise MediaError(f"{name}: the segment starts at {start!r} s, but the {what} is only {duration:.3f} s long")
    if last_s > duration + END_TOLERANCE_S:
        raise MediaError(f"{name}: the segment ends at {end!r} s, but the {what} is only {duration:.3f} s long")
    first, last = round(first_s * sampling_rate), min(round(last_s * sampling_rate), num_samples)
    if first >= last:
        raise MediaError(f"{name}: the segment from {start!r} to {end!r} s holds no sample at {sampling_rate} Hz")
    return first, last


def _seconds(what: str, value: Any, default: float, name: str) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise MediaError(f"{name}: expected the segment's {what} in seconds (0 or more), got {value!r}")
    return float(value)
