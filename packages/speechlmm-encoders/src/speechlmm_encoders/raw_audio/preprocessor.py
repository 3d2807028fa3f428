"""From loaded audio to normalised samples, in the data worker.

Shapes: R rows (media or their chunks), L samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speechlmm_core.chunking import Chunk, check_media, merge_tensors
from speechlmm_core.interfaces.modules import Preprocessor
from speechlmm_encoders.layered import SAMPLING_RATE
from speechlmm_encoders.rows import cut, pad

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
            `input_values` (R, L), `lengths` (R,) and, where media were cut, `merge_index` and (for models with a norm
            over time) `norm_media` and `norm_lengths`, see `statistics_index`.
        """
        waveforms = check_media(media, SAMPLING_RATE)
        if self.config.do_normalize:
            waveforms = [normalize(waveform) for waveform in waveforms]
        chunks, rows = cut(self.config, waveforms)
        values, lengths = pad(rows)  # (R, L)
        merged = merge_tensors(chunks, self.config.output_lengths(values.shape[1]))
        if merged and self.config.architecture.feat_extract_norm == "group":
            merged |= statistics_index(chunks, lengths, self.config)
        return {"input_values": values, "lengths": lengths, **merged}


def statistics_index(
    chunks: Sequence[Sequence[Chunk]], lengths: Tensor, config: RawAudioEncoderConfig
) -> dict[str, Tensor]:
    """What a norm over time needs to take its statistics over media rather than over their chunks.

    Args:
        chunks: The chunks of each medium.
        lengths: (R,) samples of each of them.
        config: The encoder's.

    Returns:
        `norm_media` (R,) the number of the medium that a row is of, and `norm_lengths` (R,) the frames behind the first
        convolution that are the row's own: those before the start of the next, since windows start on hops.
    """
    stride = config.architecture.conv_stride[0]
    own_frames = config.conv_lengths(lengths)[0]  # (R,)
    row = 0
    for own in chunks:
        for this, following in pairwise(own):
            own_frames[row] = (following.start - this.start) // stride
            row += 1
        row += 1  # the last has all of its frames
    media = [number for number, own in enumerate(chunks) for _ in own]
    return {"norm_media": torch.tensor(media, dtype=torch.long), "norm_lengths": own_frames}


def normalize(waveform: Tensor) -> Tensor:
    """(L,) with zero mean and unit variance."""
    if not len(waveform):
        return waveform
    return (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + VARIANCE_FLOOR)
