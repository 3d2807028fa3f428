"""From loaded audio to Whisper's log-mel features, in the data worker.

Shapes: B media, R rows (media or their chunks), L samples, M mel bins, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speechlmm_core.chunking import Chunk, check_media, merge_tensors
from speechlmm_core.interfaces.modules import Preprocessor
from speechlmm_encoders.layered import SAMPLING_RATE
from speechlmm_encoders.whisper.config import HOP_LENGTH
from speechlmm_encoders.whisper.log_mel import log_mel, padded_log_mel

if TYPE_CHECKING:
    from speechlmm_core.media.medium import Medium
    from speechlmm_encoders.whisper.config import UnrestrictedWhisperEncoderConfig, WhisperEncoderConfig


class WhisperPreprocessor(Preprocessor):
    """Log-mel of windows padded with silence; the constant part of the silence is left to the encoder."""

    def __init__(self, config: WhisperEncoderConfig) -> None:
        self.config = config

    def __call__(self, media: Sequence[Medium]) -> dict[str, Tensor]:
        """Batches media.

        Returns:
            `input_features` (R, M, T + 2), `lengths` (R,) frames of audio (the two frames that follow hold the sound
            of its last samples), `silence` (R,) the value of padding, and `merge_index` where media were cut.
        """
        config = self.config
        waveforms = check_media(media, SAMPLING_RATE)
        chunks: list[list[Chunk]] = []
        for waveform in waveforms:
            samples = len(waveform)
            chunks.append(
                config.chunker.split(config.output_lengths(samples) * config.hop if config.keep_padding else samples)
            )
        rows = [
            waveform[chunk.start : chunk.end] for waveform, own in zip(waveforms, chunks, strict=True) for chunk in own
        ]
        values, lengths, silence = padded_log_mel(rows, config.architecture.num_mel_bins, config.window)
        longest = max((len(row) for row in rows), default=0)
        return {
            "input_features": values,
            "lengths": lengths,
            "silence": silence,
            **merge_tensors(chunks, config.output_lengths(longest)),
        }


class UnrestrictedWhisperPreprocessor(Preprocessor):
    """Log-mel of whole clips, padded to the longest of the batch."""

    def __init__(self, config: UnrestrictedWhisperEncoderConfig) -> None:
        self.config = config

    def __call__(self, media: Sequence[Medium]) -> dict[str, Tensor]:
        """Batches media.

        Returns:
            `input_features` (R, M, T), `lengths` (R,) and `merge_index` where media were cut.

        Raises:
            MediaError: A clip is longer than `max_duration_s`, and `chunk_seconds` is not set.
        """
        waveforms = check_media(media, SAMPLING_RATE)
        for waveform in waveforms:
            self.config.check_length(len(waveform))
        values, lengths = log_mel(waveforms, self.config.architecture.num_mel_bins)
        chunker = self.config.chunker
        if chunker is None:
            return {"input_features": values, "lengths": lengths}
        chunks = [chunker.split(len(waveform)) for waveform in waveforms]
        merged = merge_tensors(chunks, chunker.frames)
        if not merged:
            return {"input_features": values, "lengths": lengths}
        width = chunker.window // HOP_LENGTH
        pieces = [
            values[row, :, chunk.start // HOP_LENGTH : min(chunk.start // HOP_LENGTH + width, int(lengths[row]))]
            for row, own in enumerate(chunks)
            for chunk in own
        ]
        cut = values.new_zeros(len(pieces), values.shape[1], width)  # (R, M, T)
        for row, piece in zip(cut, pieces, strict=True):
            row[:, : piece.shape[1]] = piece
        return {"input_features": cut, "lengths": torch.tensor([piece.shape[1] for piece in pieces]), **merged}
