"""From loaded video to batches of mouth crops, in the data worker.

Shapes: R rows (media or their chunks), T frames, H x W pixels, N frames of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speechlmm_core.chunking import merge_tensors
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.modules import Preprocessor
from speechlmm_encoders.auto_avsr.config import FRAME_RATE, IMAGE_SIZE
from speechlmm_encoders.rows import cut, pad

if TYPE_CHECKING:
    from speechlmm_core.media.medium import Medium
    from speechlmm_encoders.auto_avsr.config import AutoAvsrEncoderConfig


class AutoAvsrPreprocessor(Preprocessor):
    """Grey levels as bytes, cropped at the centre and padded; the encoder normalises them on its own device."""

    def __init__(self, config: AutoAvsrEncoderConfig) -> None:
        self.config = config

    def __call__(self, media: Sequence[Medium]) -> dict[str, Tensor]:
        """Batches media.

        Returns:
            `pixel_values_videos` (R, T, 88, 88) uint8, `lengths` (R,), `frame_index` (N,) int64, which says where in
            the (R * T) frames the valid ones are, and `merge_index` where media were cut.

        Raises:
            DataError: A medium is at another rate, or not grey frames of 88 x 88 pixels or more.
        """
        chunks, rows = cut(self.config, [mouth(medium) for medium in media])
        values, lengths = pad(rows, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)  # (R, T, H, W)
        longest = values.shape[1]
        index = [torch.arange(len(row)) + number * longest for number, row in enumerate(rows)]
        return {
            "pixel_values_videos": values,
            "lengths": lengths,
            "frame_index": torch.cat(index) if index else torch.zeros(0, dtype=torch.long),  # (N,)
            **merge_tensors(chunks, longest),
        }


def mouth(medium: Medium) -> Tensor:
    """(T, 88, 88) the centre of a medium's frames; grey levels that are not bytes are rounded.

    Raises:
        DataError: The medium is at another rate, or not grey frames of 88 x 88 pixels or more.
    """
    values = medium.values
    if medium.sampling_rate != FRAME_RATE:
        raise DataError(
            f"got video at {medium.sampling_rate!r} frames per second, expected {FRAME_RATE}; "
            "load it with the encoder's `load`, or convert it first"
        )
    if values.ndim != 3 or min(values.shape[1:]) < IMAGE_SIZE:
        raise DataError(
            f"got video of shape {tuple(values.shape)!r}, expected grey frames of the mouth (T, {IMAGE_SIZE}, "
            f"{IMAGE_SIZE}); load it with the encoder's `load`"
        )
    if values.dtype != torch.uint8:
        values = values.round().clamp(0, 255).to(torch.uint8)
    top, left = (round((size - IMAGE_SIZE) / 2) for size in values.shape[1:])
    return values[:, top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
