"""`speed`: the sound is played faster or slower, which changes its length, its tempo and its pitch.

T. Ko, V. Peddinti, D. Povey, S. Khudanpur, "Audio augmentation for speech recognition", Interspeech 2015: three copies
at 0.9, 1.0 and 1.1, the defaults here.

Shapes: L samples.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from speechlmm_core.interfaces.augmentation import AugmentationConfig, Samples
from speechlmm_train.augment.speed.change import as_fraction, change_speed, changed_length


class SpeedAugmentationConfig(AugmentationConfig):
    """Plays the sound at a speed that is drawn among a few."""

    type: Literal["speed"] = "speed"
    factors: Annotated[tuple[Annotated[float, Field(ge=0.5, le=2, multiple_of=0.01)], ...], Field(min_length=1)] = (
        0.9,
        1.0,
        1.1,
    )
    """Speeds, each as likely; 1.1 is faster by a tenth. At most two decimals, so that lengths are exact."""

    def apply(self, samples: Samples, sampling_rate: int, generator: np.random.Generator) -> Samples:
        """Resamples to the length that `changed_length` says."""
        factor = as_fraction(self.factors[int(generator.integers(len(self.factors)))])
        return change_speed(samples, factor)

    def max_length(self, num_samples: int) -> int:
        """The length at the slowest speed."""
        return changed_length(num_samples, as_fraction(min(self.factors)))
