"""Configuration of the sensor encoder: readings at 100 Hz -> frames at 20 Hz. Imports no torch."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from speechlmm_core.errors import MediaError
from speechlmm_core.interfaces.encoder import EncoderConfig
from speechlmm_core.lengths import Length

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_core.media.medium import Medium
    from speechlmm_toy.encoder import SensorEncoder, SensorPreprocessor


class SensorEncoderConfig(EncoderConfig):
    """An encoder of sensor readings."""

    modality: ClassVar[str] = "sensor"

    type: Literal["toy.sensor"] = "toy.sensor"
    channels: int = 6
    """Values in each reading."""
    stride: int = 5
    """Readings in each frame."""
    width: int = 32
    """Width D of the frames."""

    @property
    def sampling_rate(self) -> int:
        """Readings per second."""
        return 100

    @property
    def hidden_size(self) -> int:
        """Width D of the frames."""
        return self.width

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second."""
        return Fraction(self.sampling_rate, self.stride)

    def output_lengths(self, num_samples: Length) -> Length:
        """Whole frames; readings left over are dropped."""
        return num_samples // self.stride

    def load(self, item: dict[str, Any]) -> Medium:
        """Reads ``{"type": "sensor", "path": ...}``, a `.npy` file of shape (samples, channels).

        Raises:
            MediaError: The file cannot be used.
        """
        import numpy as np
        import torch

        from speechlmm_core.media.medium import Medium

        try:
            values = np.load(item["path"], allow_pickle=False)
        except (KeyError, OSError, ValueError, EOFError) as exc:
            raise MediaError(f"cannot read {item.get('path')!r}: {exc}; expected the path of a .npy file") from exc
        if values.ndim != 2 or values.shape[1] != self.channels:
            raise MediaError(f"{item['path']!r} has the shape {values.shape}, expected (samples, {self.channels})")
        return Medium(torch.from_numpy(values).float(), self.sampling_rate)

    def build_preprocessor(self) -> SensorPreprocessor:
        """Pads readings."""
        from speechlmm_toy.encoder import SensorPreprocessor

        return SensorPreprocessor(self.channels)

    def build(self, ctx: BuildContext) -> SensorEncoder:
        """The module."""
        from speechlmm_toy.encoder import SensorEncoder

        return SensorEncoder(self)
