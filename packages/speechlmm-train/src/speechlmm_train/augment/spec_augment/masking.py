"""Masks a waveform: stretches of time in itself, bands of frequency in its spectrogram.

The spectrogram is a short-time Fourier transform, which zeros and overlap-add make a waveform again. It could mask no
time as short as a frame of 10 ms, for its windows are longer.

Shapes: L samples, T frames, W samples of a window, K = W / 2 + 1 frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechlmm_core.interfaces.augmentation import Samples

MEL_BANDS = 80
WINDOW_S = 0.032
FADE_S = 0.002
"""How long the sound fades before a stretch and comes back after it, as a sharp edge would be a click."""
BLOCK_FRAMES = 4096
"""Frames that are transformed at a time; some 130 MB at 16 kHz would go for ten minutes at once."""


def frequency_band(first: int, width: int, sampling_rate: int) -> tuple[float, float]:
    """Edges in Hz of ``width`` of the 80 equal bands of the mel scale (2595 log10(1 + f / 700)) up to Nyquist."""
    top = 2595 * np.log10(1 + sampling_rate / 2 / 700)
    low, high = (700 * (10 ** (top * band / MEL_BANDS / 2595) - 1) for band in (first, first + width))
    return float(low), float(high)


def mask(
    samples: Samples,
    sampling_rate: int,
    *,
    bands: Sequence[tuple[float, float]],
    stretches: Sequence[tuple[int, int]],
) -> Samples:
    """Silences parts of (L,) samples; what lies outside all masks stays as it is, but for 2 ms beside a stretch.

    Args:
        samples: The waveform.
        sampling_rate: Its rate in Hz.
        bands: Lowest and highest (exclusive) frequency of each band in Hz.
        stretches: First and last (exclusive) sample of each stretch of time.
    """
    bands = [(low, high) for low, high in bands if high > low]
    stretches = [(first, last) for first, last in stretches if last > first]
    if not len(samples) or not (bands or stretches):
        return samples
    if bands:
        samples = _without_bands(samples, sampling_rate, bands)
    return samples * _open(len(samples), sampling_rate, stretches) if stretches else samples


def _open(length: int, sampling_rate: int, stretches: Sequence[tuple[int, int]]) -> Samples:
    """(L,) gains: 0 in the stretches, 1 outside, half a period of a cosine between."""
    gains = np.ones(length, np.float32)
    fade = round(FADE_S * sampling_rate)
    rise = (0.5 - 0.5 * np.cos(np.pi * np.arange(1, fade + 1) / (fade + 1))).astype(np.float32)
    for first, last in stretches:
        before, after = gains[max(0, first - fade) : first], gains[last : last + fade]
        np.minimum(before, rise[::-1][fade - len(before) :], out=before)
        np.minimum(after, rise[: len(after)], out=after)
        gains[first:last] = 0
    return gains


def _without_bands(samples: Samples, sampling_rate: int, bands: Sequence[tuple[float, float]]) -> Samples:
    hop = max(1, round(WINDOW_S * sampling_rate / 4))
    size = 4 * hop
    # Periodic Hann windows a quarter apart: their squares add up to 3/2 everywhere.
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)  # (W,)
    frequencies = np.arange(size // 2 + 1) * (sampling_rate / size)  # (K,)
    kept = np.ones(len(frequencies), np.float32)
    for low, high in bands:
        kept[(frequencies >= low) & (frequencies < high)] = 0
    num_frames = -(-(len(samples) + size) // hop)
    padded = np.zeros((num_frames - 1) * hop + size, np.float32)
    padded[size - hop : size - hop + len(samples)] = samples
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]  # (T, W)
    out = np.zeros_like(padded)
    for start in range(0, num_frames, BLOCK_FRAMES):
        spectrum = np.fft.rfft(frames[start : start + BLOCK_FRAMES] * window)  # (T, K)
        spectrum *= kept
        parts = np.fft.irfft(spectrum, size).astype(np.float32) * (window / np.float32(1.5))  # (T, W)
        for quarter in range(4):
            # Quarters of neighbouring windows lie side by side, so that each is added in one go.
            at = start * hop + quarter * hop
            out[at : at + len(parts) * hop] += parts[:, quarter * hop : (quarter + 1) * hop].reshape(-1)
    return out[size - hop : size - hop + len(samples)]
