"""Applies a list of augmentations to the media of an example, as the loader loads them for training.

All chance is a function of the number that the loader draws from (seed, epoch, index), the medium's place in the
example and the augmentation's in the list: the number of workers, ranks or a resumed run change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from speechlmm_core.config import InputConfig
from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError, MediaError
from speechlmm_core.interfaces.augmentation import AugmentationConfig
from speechlmm_core.interfaces.encoder import EncoderConfig
from speechlmm_core.media.medium import Medium

LONGEST = 1 << 40
"""Samples beyond which no limit is looked for."""


class Augmenter:
    """A list of augmentations for the inputs of a model.

    Args:
        augmentations: What is applied, in this order.
        inputs: The model's inputs by name.
    """

    def __init__(self, augmentations: Sequence[AugmentationConfig], inputs: Mapping[str, InputConfig]) -> None:
        self.augmentations = tuple(augmentations)
        self.inputs = inputs
        self._longest = lru_cache(maxsize=None)(self._find_longest)

    @classmethod
    def open(
        cls, augmentations: Sequence[AugmentationConfig], inputs: Mapping[str, InputConfig], *, base: Path
    ) -> Augmenter | None:
        """An augmenter whose augmentations have what they need; None where there is nothing to apply.

        Args:
            augmentations: What is applied, in this order.
            inputs: The model's inputs by name.
            base: Folder where relative paths start.

        Raises:
            DataError: Augmentations do not fit the model or lack something; all faults together.
        """
        faults = Faults()
        for number, one in enumerate(augmentations):
            place = f"data.augment.{number} ({one.type})"
            for name in one.inputs:
                if name not in inputs:
                    faults.add(place, f"the model has no input {name!r}, only {', '.join(inputs) or 'text'}")
                elif inputs[name].encoder.modality != "audio":
                    faults.add(place, f"the input {name!r} is {inputs[name].encoder.modality}, no audio")
            try:
                one.prepare(base)
            except DataError as exc:
                faults.add(place, str(exc).replace("\n", "; "))
        faults.raise_if_any()
        return cls(augmentations, inputs) if augmentations else None

    def __call__(self, number: int) -> ExampleTransform:
        """What changes the media of one example.

        Args:
            number: Drawn from (seed, epoch, index).
        """
        return ExampleTransform(self, number)

    def max_length(self, name: str, num_samples: int) -> int:
        """The most samples that a medium of an input can have afterwards; the batch plan counts on it."""
        longest = num_samples
        for one in self.augmentations:
            if name in one.inputs:
                longest = max(longest, one.max_length(longest))
        if longest > num_samples and not self.fits(name, longest):
            longest = max(num_samples, min(longest, self._longest(name)))
        return longest

    def fits(self, name: str, num_samples: int) -> bool:
        """Whether the model takes a medium of so many samples."""
        encoder, adapter = self.inputs[name].encoder, self.inputs[name].adapter
        try:
            encoder.check_length(num_samples)
        except MediaError:
            return False
        return adapter.max_output_lengths(encoder.output_lengths(num_samples), encoder.frame_rate) >= 1

    def _find_longest(self, name: str) -> int:
        """The longest medium that an encoder takes, by halving; 0 where it takes none."""
        low, high = 0, 1
        encoder = self.inputs[name].encoder
        while high < LONGEST and _takes(encoder, high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _takes(encoder, middle) else (low, middle)
        return low

    def __reduce__(self) -> tuple[type[Augmenter], tuple[object, ...]]:
        return type(self), (self.augmentations, dict(self.inputs))


class ExampleTransform:
    """Changes the media of one example, in the order in which they come."""

    def __init__(self, augmenter: Augmenter, number: int) -> None:
        self.augmenter, self.number = augmenter, number
        self._media = 0

    def __call__(self, name: str, medium: Medium) -> Medium:
        """The medium of an input after all augmentations that are for this input.

        A change of length that would make the medium too long or too short for the model is left out.
        """
        place, self._media = self._media, self._media + 1
        steps = [(i, one) for i, one in enumerate(self.augmenter.augmentations) if name in one.inputs]
        if not steps:
            return medium
        import torch

        samples = medium.values.numpy().astype(np.float32)
        for position, one in steps:
            generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.number, place, position])))
            if generator.random() >= one.probability:
                continue
            changed = one.apply(samples.copy(), medium.sampling_rate, generator)
            if len(changed) == len(samples) or self.augmenter.fits(name, len(changed)):
                samples = changed
        return Medium(torch.from_numpy(np.ascontiguousarray(samples, np.float32)), medium.sampling_rate)


def _takes(encoder: EncoderConfig, num_samples: int) -> bool:
    try:
        encoder.check_length(num_samples)
    except MediaError:
        return False
    return True
