"""From loaded audio to normalised filter-bank features, in the data worker.

Shapes: R rows (media or their chunks), M mel bins, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speechlmm_core.chunking import check_media, merge_tensors
from speechlmm_core.interfaces.modules import Preprocessor
from speechlmm_encoders.fbank.config import HOP_LENGTH, STRIDE
from speechlmm_encoders.fbank.features import normalized_fbank
from speechlmm_encoders.layered import SAMPLING_RATE

if TYPE_CHECKING:
    from speechlmm_core.media.medium import Medium
    from speechlmm_encoders.fbank.config import FbankEncoderConfig


class FbankPreprocessor(Preprocessor):
    """Filter banks of whole clips, normalised before they are cut, and padded to the longest of the batch."""

    def __init__(self, config: FbankEncoderConfig) -> None:
        self.config = config

    def __call__(self, media: Sequence[Medium]) -> dict[str, Tensor]:
        """Batches media.

        Returns:
            `input_features` (R, T, 2 M), `lengths` (R,) and `merge_index` where media were cut.
        """
        waveforms = check_media(media, SAMPLING_RATE)
        values, lengths = normalized_fbank(waveforms, self.config.num_mel_bins)
        chunker = self.config.chunker
        chunks = [chunker.split(len(waveform)) for waveform in waveforms] if chunker else []
        merged = merge_tensors(chunks, chunker.frames) if chunker else {}
        if not (chunker and merged):
            return {"input_features": values, "lengths": lengths}
        # A frame's features reach over its own samples only: those of a chunk are a part of the clip's.
        hop = HOP_LENGTH * STRIDE
        pieces = [
            values[row, chunk.start // hop :][: self.config.input_frames(chunk.end - chunk.start)]
            for row, own in enumerate(chunks)
            for chunk in own
        ]
        cut = values.new_zeros(len(pieces), self.config.input_frames(chunker.window), values.shape[2])  # (R, T, 2 M)
        for row, piece in zip(cut, pieces, strict=True):
            row[: len(piece)] = piece
        return {"input_features": cut, "lengths": torch.tensor([len(piece) for piece in pieces]), **merged}
