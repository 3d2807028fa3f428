"""What the kit of an encoder stands on: its media, its module, its output.

Shapes: B batch, T frames, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from speechlmm_core.features import Features
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import EncoderConfig, encoders
from speechlmm_core.interfaces.modules import Encoder
from speechlmm_core.media.medium import Medium
from speechlmm_core.testing.component import ComponentKit
from speechlmm_core.testing.media import MediumFactory, noise_audio, noise_video
from speechlmm_core.testing.toy import ToyAdapterConfig


class EncoderBase(ComponentKit):
    """An encoder under test."""

    config: EncoderConfig

    def __init__(
        self, config: EncoderConfig, medium: MediumFactory | None, margin: int, unreached: Collection[str]
    ) -> None:
        super().__init__(config, encoders, unreached)
        self.margin = margin
        self.medium = medium or self._noise

    def _noise(self, num_samples: int, seed: int) -> Medium:
        makers = {"audio": noise_audio, "video": noise_video}
        modality = self.config.modality
        assert modality in makers, f"pass `medium=` to make media of modality {modality!r}"
        return makers[modality](self.config.sampling_rate)(num_samples, seed)

    def samples(self, frames: int) -> int:
        """An odd number of samples that gives about so many frames."""
        return math.ceil(frames * self.config.sampling_rate / self.config.frame_rate) | 1

    def media(self, *frames: int) -> list[Medium]:
        """Media of about so many frames each."""
        return [self.medium(self.samples(count), seed) for seed, count in enumerate(frames)]

    def make(self, config: EncoderConfig) -> Encoder:
        """The encoder."""
        return config.build(BuildContext())

    @property
    def place(self) -> str:
        """The input is called like its modality."""
        return f"{self.config.modality}_encoder"

    def towers(self) -> dict[str, Any]:
        """The encoder with a projection."""
        return {self.place: self.config, f"{self.config.modality}_adapter": ToyAdapterConfig()}

    def encode(self, module: Encoder, media: Sequence[Medium]) -> Features:
        """Encodes media as the composite does."""
        return module(self.config.build_preprocessor()(media))

    def output(self, module: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        """The valid frames of three media of different length."""
        inputs = self.config.build_preprocessor()(self.media(23, 11, 17))
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        features = module(cast)  # cast as the composite does
        return torch.cat(rows(features))  # (sum of lengths, D)


def rows(features: Features) -> list[Tensor]:
    """The valid frames of each row, (lengths[b], D)."""
    return [row[:length] for row, length in zip(features.values, features.lengths.tolist(), strict=True)]


def flat(inputs: Mapping[str, Tensor]) -> Tensor:
    """All tensors of a preprocessor's output as one."""
    return torch.cat([inputs[name].double().flatten() for name in sorted(inputs)])
