"""`reverberation`: the sound is played in a room, by the room's impulse response from a folder.

T. Ko, V. Peddinti, D. Povey, M. L. Seltzer, S. Khudanpur, "A study on data augmentation of reverberant speech for
robust speech recognition", ICASSP 2017; their responses are OpenSLR 26 and 28.

Shapes: L samples.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import PrivateAttr

from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import MediaError
from speechlmm_core.interfaces.augmentation import AugmentationConfig, Samples
from speechlmm_train.augment.reverberation.room import load_response, read_response, reverberate
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
        """Lists the folder and decodes the responses, so that none of them ends a training that has begun."""
        found = find_sounds(self.path, base, "impulse responses")
        faults = Faults()
        with ThreadPoolExecutor(8) as pool:
            for number, fault in enumerate(pool.map(_fault, found)):
                if fault is not None:
                    faults.add("impulse responses", fault, order=number)
        faults.raise_if_any()
        self._sounds = found

    def apply(self, samples: Samples, sampling_rate: int, generator: np.random.Generator) -> Samples:
        """Convolves with a response that is drawn."""
        if not self._sounds:
            self.prepare(Path())
        sound = self._sounds[int(generator.integers(len(self._sounds)))]
        return reverberate(samples, read_response(sound.path, sampling_rate))


def _fault(sound: Sound) -> str | None:
    if sound.info.duration_s > LONGEST_S:
        return (
            f"{sound.path}: {sound.info.duration_s:.1f} s are too long for an impulse response; expected at most "
            f"{LONGEST_S:g} s"
        )
    try:
        load_response(sound.path, sound.info.sampling_rate)
    except MediaError as exc:
        return str(exc)
    return None
