"""`gain`: the sound is made louder or quieter.

The range is that of Kaldi's volume perturbation (`perturb_data_dir_volume.sh`): factors from 1/8 to 2. It is drawn
evenly in decibels.

Shapes: L samples.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.interfaces.augmentation import AugmentationConfig, Samples
from speechlmm_train.augment.levels import peak

Decibels = Annotated[float, Field(ge=-60, le=60)]


class GainAugmentationConfig(AugmentationConfig):
    """Multiplies the sound; never beyond full scale, so that nothing would be clipped in a file."""

    type: Literal["gain"] = "gain"
    gain_db: tuple[Decibels, Decibels] = (-18.0, 6.0)
    """Lowest and highest gain in dB."""

    @model_validator(mode="after")
    def _in_order(self) -> GainAugmentationConfig:
        if self.gain_db[0] > self.gain_db[1]:
            raise PydanticCustomError("range", "gain_db: the lowest gain lies above the highest")
        return self

    def apply(self, samples: Samples, sampling_rate: int, generator: np.random.Generator) -> Samples:
        """Multiplies by what is drawn, or by as much as the peak allows."""
        factor = 10 ** (float(generator.uniform(*self.gain_db)) / 20)
        loudest = peak(samples)
        if factor > 1 and factor * loudest > 1:
            factor = max(1.0, 1 / loudest)
        return (samples * np.float32(factor)).astype(np.float32)
