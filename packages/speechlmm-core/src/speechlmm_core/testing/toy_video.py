"""A stand-in for a video encoder: what the video tower of a model needs, and no more.

Shapes: B media, T frames, H height, W width, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from speechlmm_core.features import Features
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import EncoderConfig
from speechlmm_core.interfaces.modules import Encoder, Preprocessor
from speechlmm_core.lengths import Length
from speechlmm_core.media.medium import Medium

SIDE = 4


class ToyVideoPreprocessor(Preprocessor):
    """Pads frames of one size."""

    def __call__(self, media: Sequence[Medium]) -> dict[str, Tensor]:
        """Batches media."""
        lengths = [medium.num_samples for medium in media]
        size = media[0].values.shape[1:] if media else (SIDE, SIDE)
        values = torch.zeros(len(media), max(lengths, default=0), *size, dtype=torch.uint8)  # (B, T, H, W)
        for row, medium in zip(values, media, strict=True):
            row[: medium.num_samples] = medium.values
        return {"pixel_values_videos": values, "lengths": torch.tensor(lengths, dtype=torch.int64)}


class ToyVideoEncoder(Encoder):
    """Averages each frame over a few patches and projects them: 25 frames per second -> 25 Hz."""

    def __init__(self, config: ToyVideoEncoderConfig) -> None:
        super().__init__()
        self.config: ToyVideoEncoderConfig = config
        self.model = nn.Linear(SIDE * SIDE, config.width)

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes pixels (B, T, H, W)."""
        pixels = inputs["pixel_values_videos"].to(next(self.model.parameters()).dtype) / 255
        B, T, H, W = pixels.shape
        if B * T == 0:
            return Features(pixels.new_zeros(B, T, self.config.width), inputs["lengths"])
        patches = nn.functional.adaptive_avg_pool2d(pixels.reshape(B * T, 1, H, W), SIDE)  # (B * T, 1, side, side)
        return Features(self.model(patches.reshape(B, T, SIDE * SIDE)), inputs["lengths"])


class ToyVideoEncoderConfig(EncoderConfig):
    """Configuration of `ToyVideoEncoder`."""

    modality: ClassVar[str] = "video"

    type: Literal["speechlmm.toy_video_encoder"] = "speechlmm.toy_video_encoder"
    width: int = 48
    """Width D of the frames."""

    @property
    def sampling_rate(self) -> int:
        """25 frames per second."""
        return 25

    @property
    def hidden_size(self) -> int:
        """Width D of the frames."""
        return self.width

    @property
    def frame_rate(self) -> Fraction:
        """25 Hz."""
        return Fraction(25)

    def output_lengths(self, num_samples: Length) -> Length:
        """A frame for a frame."""
        return num_samples

    def load(self, item: dict[str, Any]) -> Medium:
        """Grey frames of a few pixels."""
        from speechlmm_core.media.video import load_video_item

        return load_video_item(item, self._options)

    def num_samples(self, item: dict[str, Any]) -> int:
        """Frames, by the file's header."""
        from speechlmm_core.media.video import video_item_length

        return video_item_length(item, self._options)

    @property
    def _options(self) -> Any:
        from speechlmm_core.media.video import VideoOptions

        return VideoOptions(frame_rate=self.sampling_rate, size=(16, 16), crop="none")

    def build_preprocessor(self) -> ToyVideoPreprocessor:
        """Pads frames."""
        return ToyVideoPreprocessor()

    def build(self, ctx: BuildContext) -> ToyVideoEncoder:
        """The module."""
        return ToyVideoEncoder(self)
