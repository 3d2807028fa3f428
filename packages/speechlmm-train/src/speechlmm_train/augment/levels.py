"""How loud sound is: the power of its active part, and the peak that a change may not push beyond full scale.

Shapes: L samples.
"""

from __future__ import annotations

import numpy as np

from speechlmm_core.interfaces.augmentation import Samples

FRAME_S = 0.02
ACTIVE_DB = 30.0
"""Frames that are weaker than the strongest by more than this are pauses. Speech lies within some 30 dB."""


def power(samples: Samples) -> float:
    """Mean square, summed in double precision."""
    return float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0


def active_power(samples: Samples, sampling_rate: int) -> float:
    """Mean square of the frames of 20 ms that are no pauses; 0 for silence.

    Pauses would else decide how loud a clip counts as: noise at a ratio to the mean of speech with long pauses is too
    weak where somebody speaks.
    """
    size = max(1, round(FRAME_S * sampling_rate))
    whole = len(samples) // size * size
    if not whole:
        return power(samples)
    frames = np.square(samples[:whole], dtype=np.float64).reshape(-1, size).mean(axis=1)
    loudest = float(frames.max())
    if not loudest > 0:
        return power(samples)
    return float(frames[frames >= loudest * 10 ** (-ACTIVE_DB / 10)].mean())


def peak(samples: Samples) -> float:
    """Largest magnitude."""
    return float(np.abs(samples).max(initial=0.0))


def within_full_scale(samples: Samples, before: float) -> Samples:
    """Scales down what a change pushed beyond full scale, so that nothing is ever clipped.

    Args:
        samples: (L,) the changed samples.
        before: The peak before the change; what was beyond full scale already may stay as far beyond.
    """
    now, limit = peak(samples), max(1.0, before)
    return (samples * np.float32(limit / now)).astype(np.float32) if now > limit else samples
