"""`reverberation`: the sound is played in a room, by the room's impulse response from a folder.

T. Ko, V. Peddinti, D. Povey, M. L. Seltzer, S. Khudanpur, "A study on data augmentation of reverberant speech for
robust speech recognition", ICASSP 2017; their responses are OpenSLR 26 and 28.

Shapes: L samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import PrivateAttr

from speechlmm_core.errors import MediaError
from speechlmm_core.interfaces.augmentation import AugmentationConfig, Samples
from speechlmm_train.augment.reverberation.room import read_response, reverberate
from speechlmm_train.augment.sounds import Sound, find_sounds

LONGEST_S = 10.0
"""Longer files are no impulse responses of rooms."""


class ReverberationAugmentationConfig(AugmentationConfig):
    """Convolves the sound with the impulse response of a room; neither its length, place nor level changes."""

    type: Literal["reverberation"] = "reverberation"
    path: str | None = None
    """Folder of impulse responses, searched with the folders in it. Of several channels the first is used, for each
    is a microphone of its own."""

    _sounds: tuple[Sound, ...] = PrivateAttr(())

    def prepare(self, base: Path) -> None:
        """Lists the folder and reads the headers."""
        found = find_sounds(self.path, base, "impulse responses")
        for sound in found:
            if sound.info.duration_s > LONGEST_S:
                raise MediaError(
                    f"{sound.path}: {sound.info.duration_s:.1f} s are too long for an impulse response; expected at "
                    f"most {LONGEST_S:g} s"
                )
        self._sounds = found

    def apply(self, samples: Samples, sampling_rate: int, generator: np.random.Generator) -> Samples:
        """Convolves with a response that is drawn."""
        if not self._sounds:
            self.prepare(Path())
        sound = self._sounds[int(generator.integers(len(self._sounds)))]
        return reverberate(samples, read_response(sound.path, sampling_rate))
