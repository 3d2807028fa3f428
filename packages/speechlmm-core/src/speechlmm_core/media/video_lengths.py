"""Frames of video: the only place where their number, and which of the file's frames they are, is computed.

A frame is on screen from its time stamp until the next one's. Frame k of the result is the one that is on screen at
``(k + 0.3) / frame_rate`` seconds, so any rate is converted, constant or not. Not at ``k / frame_rate`` itself: time
stamps are rounded, and a frame that is late by a millisecond would be taken for the one before. 0.3 is never a tie
with the usual rates (24, 25, 30, 50, 60, 100). Imports no torch.

Shapes: N frames of the file, T frames of the result.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.lengths import ceil_div

MICROSECONDS = 1_000_000
TENTHS = 3
"""Tenths of a frame's time at which it is looked at."""


def num_output_frames(duration: int, frame_rate: int) -> int:
    """Number of frames T of ``duration`` microseconds: all that are looked at before the end, and at least one."""
    return max(1, ceil_div(10 * duration * frame_rate - TENTHS * MICROSECONDS, 10 * MICROSECONDS))


def sample_times(start: int, count: int, frame_rate: int) -> NDArray[np.int64]:
    """(T,) when each of the ``count`` frames from ``start`` is looked at, in microseconds."""
    tenths = 10 * np.arange(count, dtype=np.int64) + TENTHS
    return start + tenths * MICROSECONDS // (10 * frame_rate)


def frames_on_screen(times: NDArray[np.int64], looks: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T,) which of the frames with the ascending time stamps ``times`` (N,) is on screen at each of ``looks`` (T,)."""
    return np.maximum(np.searchsorted(times, looks, side="right") - 1, 0)
