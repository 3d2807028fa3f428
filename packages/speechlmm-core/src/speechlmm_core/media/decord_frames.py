"""Decodes the frames of a video by decord, where it is installed and can be relied on. Imports no torch.

The module is that of decord2, the maintained fork, or of the first decord, which is not maintained and which an
environment may hold instead. That one goes wrong where it has to seek (MPEG-4, AVI, MPEG-TS, open groups of pictures),
fails on some turned pictures, and rounds deeper pixels differently, so both get the common case only: 8-bit H.264 in
MP4 or Matroska that is not turned, from its first frame on, one after the other. There the frames equal FFmpeg's.

Shapes: H rows, W pixels, T frames of the result, N frames of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.media.video_file import VideoInfo
from speechlmm_core.media.video_frames import Frame
from speechlmm_core.media.video_lengths import frames_on_screen

BATCH_BYTES = 16 << 20
"""How much is decoded at a time."""


class DecordUnfitError(Exception):
    """decord cannot read this file, or not to its end."""


def decord_fits(info: VideoInfo, looks: NDArray[np.int64]) -> bool:
    """Whether decord is installed, and reads these frames of the file as FFmpeg does."""
    from_start = len(info.times) < 2 or bool(looks[0] < info.times[1])
    return info.plain_h264 and from_start and find_spec("decord") is not None


def decord_frames(path: Path, info: VideoInfo, looks: NDArray[np.int64]) -> Iterator[Frame]:
    """Yields the RGB frame (H, W, 3) that is on screen at each of ``looks`` (T,).

    Raises:
        DecordUnfitError: decord reads the file otherwise than its packets say, or not at all.
    """
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    wanted = frames_on_screen(info.times, looks)  # (T,)
    try:
        video: Any = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if len(video) != len(info.times):
            raise DecordUnfitError(f"{len(video)} frames, not {len(info.times)}")
        step = max(1, BATCH_BYTES // (3 * info.width * info.height))
        for first in range(0, int(wanted[-1]) + 1, step):
            last = min(first + step, int(wanted[-1]) + 1)
            # All of them, as leaving any out would make it seek.
            frames: Frame = video.get_batch(range(first, last)).asnumpy()  # (n, H, W, 3)
            pictures = list(frames)
            for index in wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, last)]:
                yield pictures[index - first]
    except (decord.DECORDError, RuntimeError) as exc:
        raise DecordUnfitError(str(exc)) from exc
