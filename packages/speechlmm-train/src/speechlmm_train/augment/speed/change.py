"""Plays sound at another speed.

Shapes: L samples.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import soxr

from speechlmm_core.interfaces.augmentation import Samples
from speechlmm_core.media.audio_lengths import resampled_length


def as_fraction(factor: float) -> Fraction:
    """The speed as the two whole rates that the resampler goes between."""
    return Fraction(round(100 * factor), 100)


def changed_length(num_samples: int, factor: Fraction) -> int:
    """Samples at another speed: every one whose time lies before the end."""
    return resampled_length(num_samples, factor.numerator, factor.denominator)


def change_speed(samples: Samples, factor: Fraction) -> Samples:
    """(L,) samples played ``factor`` times as fast: soxr's HQ recipe, as for all resampling."""
    if factor == 1 or not len(samples):
        return samples
    # Silence after the end brings out the filter's tail, and the last sample where the length was rounded up.
    padded = np.concatenate([samples, np.zeros(-(-factor.numerator // factor.denominator) + 1, np.float32)])
    changed = soxr.resample(padded, factor.numerator, factor.denominator, quality="HQ")
    out = np.zeros(changed_length(len(samples), factor), np.float32)
    out[: min(len(out), len(changed))] = changed[: len(out)]
    return out
