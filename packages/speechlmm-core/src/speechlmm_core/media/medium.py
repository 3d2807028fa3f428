"""A medium as it is read from a file: samples and the rate they were resampled to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Medium:
    """One loaded medium.

    Audio: `values` is (L,) fp32 mono in [-1, 1]. Other modalities: the first dimension is time.
    """

    values: Tensor
    sampling_rate: int
    """Samples (or video frames) per second."""

    @property
    def num_samples(self) -> int:
        """Samples L."""
        return self.values.shape[0]

    @property
    def duration_s(self) -> float:
        """Duration in seconds."""
        return self.num_samples / self.sampling_rate
