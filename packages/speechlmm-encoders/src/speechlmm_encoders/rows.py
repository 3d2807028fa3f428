"""The rows of a batch: the chunks of media, padded.

Shapes: R rows (media or their chunks), L samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speechlmm_core.chunking import Chunk
from speechlmm_encoders.layered import LayeredEncoderConfig


def cut(config: LayeredEncoderConfig, media: Sequence[Tensor]) -> tuple[list[list[Chunk]], list[Tensor]]:
    """The chunks of each medium, and the content (L, ...) of all of them."""
    chunks = [config.split(len(medium)) for medium in media]
    return chunks, [medium[chunk.start : chunk.end] for medium, own in zip(media, chunks, strict=True) for chunk in own]


def pad(rows: Sequence[Tensor], *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Pads rows (L, ``*shape``) with zeros to the longest.

    Returns:
        (R, L, ``*shape``), and the rows' lengths (R,) int64.
    """
    lengths = [len(row) for row in rows]
    values = torch.zeros(len(rows), max(lengths, default=0), *shape, dtype=dtype)  # (R, L, ...)
    for target, row in zip(values, rows, strict=True):
        target[: len(row)] = row
    return values, torch.tensor(lengths, dtype=torch.long)
