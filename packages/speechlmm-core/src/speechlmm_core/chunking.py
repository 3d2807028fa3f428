"""Cutting long media into chunks, and the index that joins their frames again.

A chunk is a window of samples that starts on a frame boundary. Neighbouring windows overlap, so that the frames kept
from each have context on both sides; the frames that overlap are trimmed. Every frame of the medium is kept from
exactly one chunk, and there are as many as if the medium had been encoded whole. Needs no torch until tensors are made.

Shapes: L samples, T frames, B media, R chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.lengths import Length, ceil_div, not_negative

if TYPE_CHECKING:
    from torch import Tensor

    from speechlmm_core.media.medium import Medium


@dataclass(frozen=True)
class Chunk:
    """One window of a medium and the frames that are kept from it."""

    start: int
    """First sample."""
    end: int
    """Sample after the last."""
    keep_from: int
    """First frame of the window that is kept."""
    keep_until: int
    """Frame of the window after the last that is kept."""


@dataclass(frozen=True)
class Chunker:
    """How an encoder's media are cut.

    It relies on a property of convolutional front ends: a medium that is longer by one hop has one frame more.
    """

    window: int
    """Samples in a whole window, context included."""
    hop: int
    """Samples from one frame to the next."""
    context: int
    """Frames trimmed on each inner side of a window."""
    num_frames: Callable[[int], int]
    """Frames of a number of samples encoded whole."""

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ConfigError(
                f"a chunk of {self.frames} frames with an overlap of {self.context} frames on each side keeps nothing; "
                "make chunk_seconds longer than twice chunk_overlap_seconds"
            )

    @classmethod
    def from_seconds(
        cls,
        chunk_seconds: float,
        overlap_seconds: float,
        *,
        sampling_rate: int,
        hop: int,
        num_frames: Callable[[int], int],
    ) -> Chunker:
        """The chunker for durations; the window is rounded down, and the overlap up, to whole frames.

        Raises:
            ConfigError: The overlap leaves nothing of a chunk.
        """
        window = round(chunk_seconds * sampling_rate) // hop * hop
        context = ceil_div(round(overlap_seconds * sampling_rate), hop)
        return cls(window, hop, context, num_frames)

    @property
    def frames(self) -> int:
        """Frames of a whole window."""
        return self.num_frames(self.window)

    @property
    def step(self) -> int:
        """Frames from the start of one window to the start of the next."""
        return self.frames - 2 * self.context

    def num_chunks(self, num_frames: Length) -> Length:
        """Windows needed for a medium that has ``num_frames`` frames when encoded whole."""
        return 1 + ceil_div(not_negative(num_frames - self.frames), self.step)

    def split(self, num_samples: int) -> list[Chunk]:
        """The chunks of a medium; one, where it fits into a window."""
        total = self.num_frames(num_samples)
        count = self.num_chunks(total)
        if count == 1:
            return [Chunk(0, num_samples, 0, total)]
        chunks: list[Chunk] = []
        for number in range(count):
            first_frame = number * self.step
            start = first_frame * self.hop
            last = number == count - 1
            chunks.append(
                Chunk(
                    start=start,
                    end=min(num_samples, start + self.window),
                    keep_from=self.context if number else 0,
                    keep_until=total - first_frame if last else self.frames - self.context,
                )
            )
        return chunks


def merge_plan(chunks: Sequence[Sequence[Chunk]], row_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each medium's frames stand among the encoded chunks.

    Args:
        chunks: The chunks of each medium; the encoder's rows are all of them in this order.
        row_frames: Frames in each of the encoder's padded rows.

    Returns:
        The flat index (B, T) int64 of each frame in the (R * row_frames) frames that come out, -1 where a row is
        padding, and the media's lengths (B,) int64.
    """
    rows: list[np.ndarray] = []
    row = 0
    for medium in chunks:
        parts: list[np.ndarray] = []
        for chunk in medium:
            parts.append(np.arange(chunk.keep_from, chunk.keep_until) + row * row_frames)
            row += 1
        rows.append(np.concatenate(parts) if parts else np.zeros(0, np.int64))
    lengths = np.array([len(indices) for indices in rows], dtype=np.int64)  # (B,)
    index = np.full((len(rows), int(lengths.max(initial=0))), -1, dtype=np.int64)  # (B, T)
    for target, indices in zip(index, rows, strict=True):
        target[: len(indices)] = indices
    return index, lengths


def merge_tensors(chunks: Sequence[Sequence[Chunk]], row_frames: int) -> dict[str, Tensor]:
    """The entries `merge_index` and `merged_lengths` of a preprocessor's output; none where nothing was cut."""
    if all(len(medium) == 1 for medium in chunks):
        return {}
    import torch

    index, lengths = merge_plan(chunks, row_frames)
    return {"merge_index": torch.from_numpy(index), "merged_lengths": torch.from_numpy(lengths)}


def check_media(media: Sequence[Medium], sampling_rate: int) -> list[Any]:
    """The samples of media that are at the encoder's rate.

    Raises:
        DataError: A medium is at another rate, or is not one-dimensional.
    """
    for medium in media:
        if medium.sampling_rate != sampling_rate:
            raise DataError(
                f"got audio at {medium.sampling_rate!r} Hz, expected {sampling_rate} Hz; "
                "load it with the encoder's `load`, or resample it first"
            )
        if medium.values.ndim != 1:
            raise DataError(
                f"got audio of shape {tuple(medium.values.shape)!r}, expected one channel (L,); mix it down"
            )
    return [medium.values for medium in media]
