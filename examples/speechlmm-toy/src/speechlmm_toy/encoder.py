"""The sensor encoder: joins a few readings into a frame, and projects it. 100 Hz -> 20 Hz.

Shapes: B batch, L readings, C channels, T frames, S readings in a frame, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from speechlmm_core.features import Features
from speechlmm_core.interfaces.modules import Encoder, Preprocessor
from speechlmm_core.media.medium import Medium
from speechlmm_toy.config import SensorEncoderConfig


class SensorPreprocessor(Preprocessor):
    """Pads readings to one length, in the data worker."""

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, media: Sequence[Medium]) -> dict[str, Tensor]:
        """Batches media as `input_values` (B, L, C) and `lengths` (B,)."""
        lengths = [medium.num_samples for medium in media]
        values = torch.zeros(len(media), max(lengths, default=0), self.channels)  # (B, L, C)
        for row, medium in zip(values, media, strict=True):
            row[: medium.num_samples] = medium.values
        return {"input_values": values, "lengths": torch.tensor(lengths, dtype=torch.int64)}


class SensorEncoder(Encoder):
    """See `SensorEncoderConfig`."""

    def __init__(self, config: SensorEncoderConfig) -> None:
        super().__init__()
        self.config: SensorEncoderConfig = config
        self.model = nn.Sequential(nn.Linear(config.stride * config.channels, config.width), nn.GELU())

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes a preprocessor's output. A frame sees its own readings alone, so that padding needs no mask."""
        values, stride = inputs["input_values"], self.config.stride
        batch, num_frames, channels = len(values), values.shape[1] // stride, values.shape[2]
        frames = values[:, : num_frames * stride].reshape(batch, num_frames, stride * channels)  # (B, T, S C)
        return Features(self.model(frames), self.config.output_lengths(inputs["lengths"]))  # (B, T, D)
