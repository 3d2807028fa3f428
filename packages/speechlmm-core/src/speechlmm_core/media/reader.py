"""What reads an audio file: its properties from the header, and its samples in mono blocks. Imports no torch.

Shapes: L samples, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

BLOCK_SAMPLES = 1 << 16
"""Samples that are decoded at a time; memory beyond the result is a few blocks."""
PREROLL_S = 1.5
"""How much earlier decoding starts before a segment of a lossy file. MP3 has the longest memory: its smallest frames
may borrow bits from some thirty before them, 0.8 s."""

Block = np.ndarray[Any, np.dtype[np.float32]]


MIN_RATE, MAX_RATE = 1000, 1_000_000
"""Samples a second that audio may have; other numbers come from damaged headers."""
MAX_CHANNELS = 256
"""Likewise for channels."""


@dataclass(frozen=True)
class AudioInfo:
    """Properties of an audio file, at its own sampling rate."""

    num_samples: int
    """Samples per channel."""
    sampling_rate: int
    """Samples per second."""
    num_channels: int
    """Channels; loading averages them."""

    @property
    def duration_s(self) -> float:
        """Duration in seconds."""
        return self.num_samples / self.sampling_rate


class AudioReader(Protocol):
    """An open audio file."""

    info: AudioInfo
    end_tolerance: int
    """Samples by which what decodes may fall short of the header; zero where the header is exact."""

    def blocks(self, first: int, last: int) -> Iterator[Block]:
        """Decodes the samples from ``first`` to ``last`` (exclusive) as mono blocks (L,).

        Fewer samples than asked for mean that the file ends early.
        """
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


def average(values: np.ndarray[Any, Any], *, axis: int) -> Block:
    """The mean over the channels; of numbers that are none or too large, no number either, without a warning."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.mean(axis=axis, dtype=np.float32)
