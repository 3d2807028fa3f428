"""Plays sound in a room.

Shapes: L samples of the sound, H samples of the room's impulse response, C channels.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from speechlmm_core.errors import MediaError
from speechlmm_core.interfaces.augmentation import Samples
from speechlmm_core.media.source import MediaSource
from speechlmm_train.augment.levels import peak, power, within_full_scale


def load_response(path: Path, sampling_rate: int) -> Samples:
    """(H,) the first channel of a response.

    Raises:
        MediaError: It cannot be read, or is silent.
    """
    from speechlmm_core.media.audio import load_audio

    response = load_audio(MediaSource(path, channel=0), sampling_rate=sampling_rate).values.numpy()
    if not power(response) > 0:
        raise MediaError(f"{path}: the impulse response is silent; leave it out")
    return response


read_response = lru_cache(maxsize=64)(load_response)
"""`load_response`, the last few kept."""


def reverberate(samples: Samples, response: Samples) -> Samples:
    """(L,) samples convolved with the (H,) response, the direct path at time 0, at the power that they had before."""
    level = power(samples)
    if not level > 0:
        return samples
    direct = int(np.argmax(np.abs(response)))
    size = fast_length(len(samples) + len(response) - 1)
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    wet = np.fft.irfft(spectrum, size)[direct : direct + len(samples)].astype(np.float32)
    now = power(wet)
    if not now > 0:
        return samples
    return within_full_scale((wet * np.float32(np.sqrt(level / now))), peak(samples))


def fast_length(length: int) -> int:
    """The least number from ``length`` on without prime factors above 5, for which the FFT is fast."""
    best = 1 << max(0, length - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            two = three << max(0, -(-length // three) - 1).bit_length()
            best = min(best, two)
            three *= 3
        five *= 5
    return best
