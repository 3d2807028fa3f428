"""`noise`: sounds from a folder are added, at a ratio that is drawn.

D. Snyder, D. Garcia-Romero, G. Sell, D. Povey, S. Khudanpur, "X-vectors: robust DNN embeddings for speaker
recognition", ICASSP 2018, add the noises of MUSAN (arXiv 1510.08484) at 0 to 15 dB, the default here; they take 5 to
15 dB for music and 13 to 20 dB for babble.

Shapes: L samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.interfaces.augmentation import AugmentationConfig, Samples
from speechlmm_train.augment.levels import active_power, peak, within_full_scale
from speechlmm_train.augment.sounds import Sound, find_sounds

MAX_DRAWS = 20
"""How often noise is drawn for a clip until a part is found that is not silent."""
Decibels = Annotated[float, Field(ge=-60, le=100)]


class NoiseAugmentationConfig(AugmentationConfig):
    """Adds a sound from a folder: a part of a longer one, a shorter one over and over."""

    type: Literal["noise"] = "noise"
    path: str | None = None
    """Folder of sounds, searched with the folders in it; relative paths start where those of the data do."""
    snr_db: tuple[Decibels, Decibels] = (0.0, 15.0)
    """Lowest and highest ratio of the sound to the noise, in dB. Pauses do not count, neither the sound's nor the
    noise's."""

    _sounds: tuple[Sound, ...] = PrivateAttr(())

    @model_validator(mode="after")
    def _in_order(self) -> NoiseAugmentationConfig:
        if self.snr_db[0] > self.snr_db[1]:
            raise PydanticCustomError("range", "snr_db: the lowest ratio lies above the highest")
        return self

    def prepare(self, base: Path) -> None:
        """Lists the folder and reads the headers."""
        self._sounds = find_sounds(self.path, base, "noise")

    def apply(self, samples: Samples, sampling_rate: int, generator: np.random.Generator) -> Samples:
        """Adds noise over the whole length; silence stays silence, for it has no ratio to anything.

        Noise that is silent where it is cut is drawn again; where only silence is found, nothing is added.
        """
        if not self._sounds:
            self.prepare(Path())
        sound = self._sounds[int(generator.integers(len(self._sounds)))]
        place, snr_db = float(generator.random()), float(generator.uniform(*self.snr_db))
        if not active_power(samples, sampling_rate) > 0:
            return samples
        noise = read_noise(sound, len(samples), sampling_rate, place)
        for _ in range(MAX_DRAWS - 1):
            if active_power(noise, sampling_rate) > 0:
                break
            sound = self._sounds[int(generator.integers(len(self._sounds)))]
            noise = read_noise(sound, len(samples), sampling_rate, float(generator.random()))
        return add_noise(samples, noise, sampling_rate, snr_db)


def read_noise(sound: Sound, length: int, sampling_rate: int, place: float) -> Samples:
    """(L,) samples of a sound, from a ``place`` in [0, 1): cut out where it is longer, repeated where it is shorter."""
    from speechlmm_core.media.audio import load_audio

    spare = sound.info.duration_s - length / sampling_rate
    if spare <= 0:
        whole = load_audio(sound.path, sampling_rate=sampling_rate).values.numpy()
        return np.take(whole, np.arange(length) + int(place * len(whole)), mode="wrap")
    start = place * spare
    part = load_audio(
        sound.path,
        sampling_rate=sampling_rate,
        start=start,
        end=min(start + length / sampling_rate + 0.01, sound.info.duration_s),
    ).values.numpy()
    return np.resize(part, length) if len(part) < length else part[:length]


def add_noise(samples: Samples, noise: Samples, sampling_rate: int, snr_db: float) -> Samples:
    """Adds (L,) noise so that the active levels of the two have the ratio."""
    level, hum = active_power(samples, sampling_rate), active_power(noise, sampling_rate)
    if not (level > 0 and hum > 0):
        return samples
    factor = np.sqrt(level / hum) * 10 ** (-snr_db / 20)
    return within_full_scale((samples + np.float32(factor) * noise).astype(np.float32), peak(samples))
