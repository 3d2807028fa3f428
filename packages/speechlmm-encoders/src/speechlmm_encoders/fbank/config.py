"""What the configurations of encoders over filter-bank features have in common. Imports no torch.

16 kHz -> filter banks at 100 Hz -> pairs of them at 50 Hz -> the adapter's convolutions.

Shapes: L samples, T frames.
"""

from __future__ import annotations

from abc import abstractmethod
from math import prod
from typing import TYPE_CHECKING

from speechlmm_core.chunking import Chunker
from speechlmm_core.lengths import Length, conv_output_length
from speechlmm_encoders.layered import LayeredEncoderConfig

if TYPE_CHECKING:
    from speechlmm_encoders.fbank.preprocessor import FbankPreprocessor

FRAME_LENGTH = 400
"""Samples in the window of a filter-bank frame."""
HOP_LENGTH = 160
"""Samples between two filter-bank frames."""
STRIDE = 2
"""Filter-bank frames that are put together into one frame of the encoder."""


class FbankEncoderConfig(LayeredEncoderConfig):
    """Base of the encoders over pairs of filter-bank frames, with an adapter of strided convolutions or without."""

    @property
    @abstractmethod
    def num_features(self) -> int:
        """Width of the encoder's input: the mel bins of two frames."""

    @property
    @abstractmethod
    def convolutions(self) -> tuple[tuple[int, int], ...]:
        """Kernel size and stride of each layer of the adapter."""

    @property
    def num_mel_bins(self) -> int:
        """Mel bins M."""
        return self.num_features // STRIDE

    @property
    def hop(self) -> int:
        """Samples from one frame that comes out to the next."""
        return HOP_LENGTH * STRIDE * prod(stride for _, stride in self.convolutions)

    def input_frames(self, num_samples: Length) -> Length:
        """Frames at 50 Hz of so many samples; an odd filter-bank frame at the end is left out."""
        return conv_output_length(num_samples, kernel_size=FRAME_LENGTH, stride=HOP_LENGTH) // STRIDE

    def adapter_lengths(self, num_frames: Length) -> list[Length]:
        """Lengths before the adapter and after each of its layers; nothing comes out where nothing goes in.

        Source: the convolutions of transformers' adapters, which pad by half their stride on both sides.
        """
        lengths: list[Length] = [num_frames]
        for kernel_size, stride in self.convolutions:
            out = conv_output_length(num_frames, kernel_size=kernel_size, stride=stride, padding=stride // 2)
            num_frames = out * (num_frames > 0)
            lengths.append(num_frames)
        return lengths

    def output_lengths(self, num_samples: Length) -> Length:
        """Frames of so many samples; none for less than two filter-bank frames."""
        return self.adapter_lengths(self.input_frames(num_samples))[-1]

    @property
    def chunker(self) -> Chunker | None:
        """How longer media are cut.

        The last frame of an adapter that pads may have all of its input in the chunk before. Neighbouring chunks
        therefore overlap by one frame on each side at least.
        """
        if self.chunk_seconds is None:
            return None
        reaches_back = any(stride // 2 * 2 >= kernel_size for kernel_size, stride in self.convolutions)
        return Chunker.from_seconds(
            self.chunk_seconds,
            max(self.chunk_overlap_seconds, self.hop / self.sampling_rate if reaches_back else 0.0),
            sampling_rate=self.sampling_rate,
            hop=self.hop,
            num_frames=self.output_lengths,
        )

    def build_preprocessor(self) -> FbankPreprocessor:
        """Makes filter-bank features in the data worker."""
        from speechlmm_encoders.fbank.preprocessor import FbankPreprocessor

        return FbankPreprocessor(self)
