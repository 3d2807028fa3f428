"""From loaded audio to the input of an audio encoder of transformers, in the data worker.

Shapes: R rows (media or their chunks), L samples, T steps of the input or frames of the output, M mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    Speech2TextFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.models.seamless_m4t.feature_extraction_seamless_m4t import SeamlessM4TFeatureExtractor

from speechlmm_core.chunking import Chunk, check_media, merge_tensors
from speechlmm_core.errors import ConfigError
from speechlmm_core.features import length_mask
from speechlmm_core.interfaces.modules import Preprocessor
from speechlmm_encoders.rows import pad

if TYPE_CHECKING:
    from speechlmm_core.media.medium import Medium
    from speechlmm_encoders.hf_audio.config import HFAudioEncoderConfig

EXTRACTORS: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        Wav2Vec2FeatureExtractor,
        WhisperFeatureExtractor,
        Speech2TextFeatureExtractor,
        SeamlessM4TFeatureExtractor,
    )
}
"""The feature extractors by name; nothing else that a checkpoint may name is run."""


class HFAudioPreprocessor(Preprocessor):
    """The feature extractor over each clip alone, so that its normalisation never sees padding."""

    def __init__(self, config: HFAudioEncoderConfig) -> None:
        self.config = config
        options = dict(config.extraction)
        kind = EXTRACTORS[options.pop("feature_extractor_type")]
        try:
            self.extractor = kind(**options)
        except (TypeError, ValueError) as exc:
            raise ConfigError(f"`feature_extractor:` makes no {kind.__name__}: {exc}") from exc

    def __call__(self, media: Sequence[Medium]) -> dict[str, Tensor]:
        """Batches media.

        Returns:
            `input_values` (R, L), or `input_features` as the model takes them ((R, M, T) for Whisper, else (R, T, M));
            `lengths` (R,) valid steps of it; `frame_mask` (R, T) bool, true on the frames that will come out; and
            `merge_index` where media were cut.
        """
        config, front_end = self.config, self.config.front_end
        waveforms = check_media(media, config.sampling_rate)
        chunks = [config.split(len(waveform)) for waveform in waveforms]
        rows = [row for waveform, own in zip(waveforms, chunks, strict=True) for row in self._rows(waveform, own)]
        values, lengths = self._window(rows) if front_end.batching == "window" else pad(rows, *self._width)
        frames = [config.output_lengths(chunk.end - chunk.start) for own in chunks for chunk in own]
        longest = max(frames, default=0)
        return {
            front_end.input_name: values,
            "lengths": lengths,
            "frame_mask": length_mask(torch.tensor(frames, dtype=torch.long), longest),
            **merge_tensors(chunks, longest),
        }

    def _rows(self, waveform: Tensor, chunks: Sequence[Chunk]) -> list[Tensor]:
        """The input for each chunk of a clip, (T,) or (T, M); a window of Whisper is (M, T)."""
        front_end = self.config.front_end
        if front_end.batching == "window":
            return [self._extract(waveform[chunk.start : chunk.end]) for chunk in chunks]
        whole = self._extract(waveform)
        hop = 1
        for _, stride, _ in front_end.preprocessing:
            hop *= stride
        return [
            whole[chunk.start // hop : chunk.start // hop + front_end.feature_lengths(chunk.end - chunk.start)]
            for chunk in chunks
        ]

    def _extract(self, waveform: Tensor) -> Tensor:
        front_end = self.config.front_end
        length = front_end.feature_lengths(len(waveform))
        options: dict[str, Any] = {"sampling_rate": self.config.sampling_rate, "return_tensors": "np"}
        if front_end.batching == "window":
            options |= {"max_length": self.config.window, "padding": "max_length", "truncation": True}
        elif length == 0:
            return torch.zeros(0, *self._width)
        # Where all frames are alike (one alone, or silence) a normalisation by their deviation has none to divide by.
        with np.errstate(divide="ignore", invalid="ignore"):
            found = self.extractor(waveform.numpy(), **options)[front_end.input_name][0]
        values = torch.from_numpy(np.nan_to_num(np.asarray(found, dtype=np.float32)))
        return values if front_end.batching == "window" else values[:length]

    @property
    def _width(self) -> tuple[int, ...]:
        """(M,), or nothing for raw audio."""
        num_features = self.config.front_end.num_features
        return (num_features,) if num_features else ()

    def _window(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        front_end = self.config.front_end
        width = front_end.feature_lengths(self.config.window or 0)
        values = torch.stack(list(rows)) if rows else torch.zeros(0, front_end.num_features, width)  # (R, M, T)
        return values, torch.full((len(rows),), values.shape[2], dtype=torch.long)
