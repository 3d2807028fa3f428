"""`spec_augment`: bands of frequency and stretches of time are taken out of the sound.

D. S. Park, W. Chan, Y. Zhang, C.-C. Chiu, B. Zoph, E. D. Cubuk, Q. V. Le, "SpecAugment: a simple data augmentation
method for automatic speech recognition", Interspeech 2019 (arXiv 1904.08779). The defaults are its policy SS: F = 27
of 80 mel bands, two masks; T = 70 frames of 10 ms, at most a fifth of the clip, two masks. Warping of time is left
out; the paper finds that it helps least and costs most.

The paper masks an encoder's log-mel features. Here the waveform is masked, for bands by way of its spectrogram, so that
encoders of raw audio and of any features learn from it alike. A stretch of time is silence, with a fade of 2 ms before
and after it; a band is what the spectrogram's windows of 32 ms can tell apart, some 31 Hz, more than the lowest of the
80 mel bands are wide.

Shapes: L samples, T frames, K frequencies of the spectrogram.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from speechlmm_core.interfaces.augmentation import AugmentationConfig, Samples
from speechlmm_train.augment.spec_augment.masking import MEL_BANDS, frequency_band, mask

FRAME_S = 0.01
Count = Annotated[int, Field(ge=0, le=100)]


class SpecAugmentationConfig(AugmentationConfig):
    """Silences bands of frequency and stretches of time."""

    type: Literal["spec_augment"] = "spec_augment"
    num_frequency_masks: Count = 2
    """Bands that are masked; they may overlap."""
    max_frequency_bands: Annotated[int, Field(ge=0, lt=MEL_BANDS)] = 27
    """Widest mask, of 80 bands of equal width on the mel scale."""
    num_time_masks: Count = 2
    """Stretches of time that are masked; they may overlap."""
    max_time_frames: Annotated[int, Field(ge=0)] = 70
    """Longest mask in frames of 10 ms."""
    max_time_fraction: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Longest mask as a part of the clip, so that short clips keep their words."""

    def apply(self, samples: Samples, sampling_rate: int, generator: np.random.Generator) -> Samples:
        """Draws the masks as the paper does, their width first, then their place."""
        bands: list[tuple[float, float]] = []
        for _ in range(self.num_frequency_masks):
            width = int(generator.integers(self.max_frequency_bands + 1))
            bands.append(frequency_band(int(generator.integers(MEL_BANDS - width + 1)), width, sampling_rate))
        frames = int(len(samples) / (FRAME_S * sampling_rate))
        longest = min(self.max_time_frames, int(self.max_time_fraction * frames))
        stretches: list[tuple[int, int]] = []
        for _ in range(self.num_time_masks):
            width = int(generator.integers(longest + 1))
            first = int(generator.integers(frames - width + 1))
            step = FRAME_S * sampling_rate
            stretches.append((round(first * step), round((first + width) * step)))
        return mask(samples, sampling_rate, bands=bands, stretches=stretches)
