"""From loaded audio to normalised samples, in the data worker.

Shapes: R rows (media or their chunks), L samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speechlmm_core.chunking import Chunk, check_media, merge_tensors
from speechlmm_core.interfaces.modules import Preprocessor
from speechlmm_encoders.layered import SAMPLING_RATE

if TYPE_CHECKING:
    from speechlmm_core.media.medium import Medium
    from speechlmm_encoders.raw_audio.config import RawAudioEncoderConfig

VARIANCE_FLOOR = 1e-7
"""As in transformers' `Wav2Vec2FeatureExtractor`."""


class RawAudioPreprocessor(Preprocessor):
    """Raw audio, normalised per clip (before it is cut) and padded with zeros."""

    def __init__(self, config: RawAudioEncoderConfig) -> None:
        self.config = config

    def __call__(self, media: Sequence[Medium]) -> dict[str, Tensor]:
        """Batches media.

        Returns:
            `input_values` (R, L), `lengths` (R,) and `merge_index` where media were cut.
        """
        waveforms = check_media(media, SAMPLING_RATE)
        if self.config.do_normalize:
            waveforms = [normalize(waveform) for waveform in waveforms]
        chunker = self.config.chunker
        chunks = [
            chunker.split(len(waveform)) if chunker else [Chunk(0, len(waveform), 0, 0)] for waveform in waveforms
        ]
        rows = [
            waveform[chunk.start : chunk.end] for waveform, own in zip(waveforms, chunks, strict=True) for chunk in own
        ]
        lengths = [len(row) for row in rows]
        values = torch.zeros(len(rows), max(lengths, default=0))  # (R, L)
        for target, row in zip(values, rows, strict=True):
            target[: len(row)] = row
        return {
            "input_values": values,
            "lengths": torch.tensor(lengths, dtype=torch.long),
            **merge_tensors(chunks, self.config.output_lengths(max(lengths, default=0))),
        }


def normalize(waveform: Tensor) -> Tensor:
    """(L,) with zero mean and unit variance."""
    if not len(waveform):
        return waveform
    return (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + VARIANCE_FLOOR)
