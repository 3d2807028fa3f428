"""The parts of a telephone line: its band, and the eight bits of G.711.

Shapes: L samples.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.interfaces.augmentation import Samples

LINE_RATE = 8000
SLOPE_HZ = 100.0
"""Width of the edges of the band, which are half a period of a cosine; a sharp edge would ring."""
ROOM_S = 0.1


def band_limited(samples: Samples, sampling_rate: int, band: tuple[float, float]) -> Samples:
    """(L,) samples without what lies outside the band; the phase stays."""
    # Silence behind the end, for the filter would else wrap around to the beginning.
    size = len(samples) + round(ROOM_S * sampling_rate)
    size += size % 2
    frequencies = np.fft.rfftfreq(size, 1 / sampling_rate)
    low = np.clip((frequencies - band[0]) / SLOPE_HZ + 0.5, 0, 1)
    high = np.clip((band[1] - frequencies) / SLOPE_HZ + 0.5, 0, 1)
    gain = 0.25 * (1 - np.cos(np.pi * low)) * (1 - np.cos(np.pi * high))
    return np.fft.irfft(np.fft.rfft(samples, size) * gain, size)[: len(samples)].astype(np.float32)


def resampled(samples: Samples, rate: int, to_rate: int) -> Samples:
    """(L,) samples at another rate, as many as there is room for before the end."""
    if rate == to_rate:
        return samples
    import soxr

    return soxr.resample(samples, rate, to_rate, quality="HQ").astype(np.float32)


def companded(samples: Samples, law: Literal["mu", "a"]) -> Samples:
    """(L,) samples as they come out of G.711: each becomes the nearest of 256 levels; beyond full scale, the last."""
    levels, borders = _levels(law)
    return levels[np.searchsorted(borders, samples)]


@cache
def _levels(law: Literal["mu", "a"]) -> tuple[Samples, NDArray[np.float64]]:
    """The (256,) levels in rising order, and the (255,) borders half-way between them."""
    codes = np.arange(128)
    exponent, mantissa = codes >> 4, codes & 15
    if law == "mu":
        # 14 bits: eight segments of 16 steps, each twice as coarse as the one before, with a bias of 33 (132 in 16).
        positive = (((mantissa << 3) + 132) << exponent) - 132
    else:
        # 13 bits: the first two segments have the same steps.
        positive = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 264) << np.maximum(exponent - 1, 0))
    levels = np.sort(np.concatenate([-positive, positive])) / 32768
    return levels.astype(np.float32), (levels[1:] + levels[:-1]) / 2
