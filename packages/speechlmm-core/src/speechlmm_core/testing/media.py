"""Media of noise, for the contracts.

Shapes: L samples, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from speechlmm_core.media.medium import Medium

MediumFactory = Callable[[int, int], Medium]
"""Makes a medium from (number of samples, seed)."""


def noise_audio(sampling_rate: int) -> MediumFactory:
    """Makes noise (L,)."""

    def make(num_samples: int, seed: int) -> Medium:
        generator = torch.Generator().manual_seed(seed)
        return Medium(torch.randn(num_samples, generator=generator).mul(0.1).clamp(-1, 1), sampling_rate)

    return make


def noise_video(frame_rate: int = 25, height: int = 96, width: int = 96) -> MediumFactory:
    """Makes grey frames (T, H, W) uint8."""

    def make(num_frames: int, seed: int) -> Medium:
        generator = torch.Generator().manual_seed(seed)
        size = (num_frames, height, width)
        return Medium(torch.randint(0, 256, size, dtype=torch.uint8, generator=generator), frame_rate)

    return make


def changed(medium: Medium) -> Medium:
    """Another medium of the same length: louder, or with its colours inverted."""
    values = medium.values
    other = values * 3 + 0.1 if values.is_floating_point() else torch.iinfo(values.dtype).max - values
    return Medium(other, medium.sampling_rate)
