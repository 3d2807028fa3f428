"""The interface of an augmentation: audio is changed while it is loaded for training. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from speechlmm_core.registry import ComponentConfig, Registry

Samples = NDArray[np.float32]


class AugmentationConfig(ComponentConfig, ABC):
    """A change of the sound, drawn anew for every example in every epoch, and the same whenever it is drawn again."""

    probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How often it is applied."""
    inputs: tuple[str, ...] = ("audio",)
    """The model's inputs that it is applied to."""

    def prepare(self, base: Path) -> None:
        """Looks at what it needs before training starts: folders of noise, say; relative paths start at ``base``.

        Raises:
            DataError: Something is missing.
        """

    @abstractmethod
    def apply(self, samples: Samples, sampling_rate: int, generator: np.random.Generator) -> Samples:
        """Changes (L,) samples; may change their number as far as `max_length` says.

        Args:
            samples: Mono samples; may be changed in place.
            sampling_rate: Their rate in Hz.
            generator: All chance comes from here.
        """

    def max_length(self, num_samples: int) -> int:
        """The most samples that can come out of so many; the batch plan counts on it."""
        return num_samples


augmentations: Registry[AugmentationConfig] = Registry("augmentation", AugmentationConfig)
AnyAugmentation = Annotated[AugmentationConfig, augmentations]
