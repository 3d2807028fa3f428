"""`telephone`: the sound comes over a telephone line: 300 to 3400 Hz, 8000 samples a second, eight bits each.

ITU-T G.712 for the band, G.711 (1988) for the mu-law (North America, Japan) and the A-law (elsewhere). With `codec`
the eight bits give way to a lossy codec at a low bit rate.

Shapes: L samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.interfaces.augmentation import AugmentationConfig, Samples
from speechlmm_train.augment.telephone.line import LINE_RATE, band_limited, companded, resampled

Hertz = Annotated[float, Field(ge=0, le=LINE_RATE / 2)]


class TelephoneAugmentationConfig(AugmentationConfig):
    """Narrows the band and codes the sound as telephones do; its length stays."""

    type: Literal["telephone"] = "telephone"
    band_hz: tuple[Hertz, Hertz] = (300.0, 3400.0)
    """The band that the line lets through."""
    laws: Annotated[tuple[Literal["mu", "a"], ...], Field(min_length=1)] = ("mu", "a")
    """Companding laws, each as likely; without meaning where there is a codec."""
    codec: Literal["opus", "mp3", "gsm", "amr"] | None = None
    """A lossy codec in place of companding. Which of them can be encoded depends on how FFmpeg was built."""
    bit_rate: Annotated[int, Field(ge=4750, le=64_000)] | None = None
    """The codec's bits a second; 12,200 for `amr`, 13,000 for `gsm` (its only one), 8,000 for the others."""

    @model_validator(mode="after")
    def _fits(self) -> TelephoneAugmentationConfig:
        if self.band_hz[0] >= self.band_hz[1]:
            raise PydanticCustomError("range", "band_hz: the lowest frequency lies not below the highest")
        if self.bit_rate is not None and self.codec in (None, "gsm"):
            raise PydanticCustomError("bit_rate", "bit_rate: only a `codec` has one, and `gsm` no other than its own")
        return self

    def prepare(self, base: Path) -> None:
        """Tries the codec."""
        if self.codec is not None:
            from speechlmm_train.augment.telephone.coding import through_codec

            through_codec(np.zeros(LINE_RATE, np.float32), self.codec, self.bit_rate)

    def apply(self, samples: Samples, sampling_rate: int, generator: np.random.Generator) -> Samples:
        """Band, 8 kHz, law or codec, and back."""
        law = self.laws[int(generator.integers(len(self.laws)))]
        if not len(samples):
            return samples
        narrow = resampled(band_limited(samples, sampling_rate, self.band_hz), sampling_rate, LINE_RATE)
        if self.codec is None:
            coded = companded(narrow, law)
        else:
            from speechlmm_train.augment.telephone.coding import through_codec

            coded = through_codec(narrow, self.codec, self.bit_rate)
        back = resampled(coded, LINE_RATE, sampling_rate)
        out = np.zeros(len(samples), np.float32)
        out[: min(len(out), len(back))] = back[: len(out)]
        return out
