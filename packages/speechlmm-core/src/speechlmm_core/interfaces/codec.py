"""The interface of a neural codec's configuration: waveform to codes and back. Imports no torch.

Shapes: B batch, K codebooks, T frames, L samples. No codec is shipped yet; the interface is what one must offer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

from speechlmm_core.lengths import Length
from speechlmm_core.registry import ComponentConfig, Registry

if TYPE_CHECKING:
    from torch import nn

    from speechlmm_core.interfaces.context import BuildContext


class CodecConfig(ComponentConfig, ABC):
    """Configuration of a codec.

    Its module offers ``encode(waveform (B, L), lengths, state=None) -> Codes(values (B, K, T), lengths, state)`` and
    ``decode(codes, state=None)`` likewise; a state carries a stream from one call to the next.
    """

    @property
    @abstractmethod
    def sampling_rate(self) -> int:
        """Samples per second of the waveform."""

    @property
    @abstractmethod
    def frame_rate(self) -> Fraction:
        """Frames of codes per second."""

    @property
    @abstractmethod
    def num_codebooks(self) -> int:
        """Codebooks K."""

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """Entries of each codebook."""

    @abstractmethod
    def output_lengths(self, num_samples: Length) -> Length:
        """The exact number of frames for waveforms of ``num_samples`` samples."""

    @abstractmethod
    def build(self, ctx: BuildContext) -> nn.Module:
        """The module."""


codecs: Registry[CodecConfig] = Registry("codec", CodecConfig)
AnyCodec = Annotated[CodecConfig, codecs]
