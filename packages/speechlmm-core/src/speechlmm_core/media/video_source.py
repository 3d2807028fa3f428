"""Where the frames of a video come from: a file, read by one of two libraries, or an array. Imports no torch.

Shapes: T frames of the result, N frames of the source, H rows, W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.errors import MediaError
from speechlmm_core.media.decord_frames import DecordUnfitError, decord_fits, decord_frames
from speechlmm_core.media.pyav_frames import pyav_frames, rotation
from speechlmm_core.media.source import MediaSource, item_source
from speechlmm_core.media.video_file import MICROSECONDS, VideoInfo, video_info
from speechlmm_core.media.video_frames import Frame
from speechlmm_core.media.video_lengths import frames_on_screen

logger = logging.getLogger(__name__)


class VideoSource(Protocol):
    """A video of which nothing is decoded yet."""

    name: str
    info: VideoInfo

    def size(self) -> tuple[int, int]:
        """Height and width of the frames that are yielded.

        Raises:
            MediaError: No frame can be decoded.
        """
        ...

    def frames(self, looks: NDArray[np.int64]) -> Iterator[Frame]:
        """Yields the RGB frame (H, W, 3) that is on screen at each of the ascending times ``looks`` (T,).

        Raises:
            MediaError: The frames cannot be decoded.
        """
        ...


def source_of(item: Mapping[str, Any]) -> VideoSource:
    """The source that a content item names.

    Raises:
        MediaError: The item names none, or the file cannot be used.
    """
    source = item_source(item, "video")
    return ArraySource(item["array"], item.get("sampling_rate")) if source is None else FileSource(source)


class FileSource:
    """A video file, or a part of a file that is one."""

    def __init__(self, path: MediaSource) -> None:
        self.path, self.name = path, str(path)
        self.info = video_info(path)

    def size(self) -> tuple[int, int]:
        """Height and width as a player shows them."""
        height, width = self.info.height, self.info.width
        return (width, height) if self._rotation % 2 else (height, width)

    @cached_property
    def _rotation(self) -> int:
        return rotation(self.path)

    def frames(self, looks: NDArray[np.int64]) -> Iterator[Frame]:
        """Decodes the frames, one after the other."""
        done = 0
        file = self.path.path if self.path.whole else None  # decord reads whole files only
        if file is not None and decord_fits(self.info, looks) and not self._rotation:
            try:
                for frame in decord_frames(file, self.info, looks):
                    yield frame
                    done += 1
            except DecordUnfitError as exc:
                logger.debug("%s: FFmpeg goes on after %d frames, as decord cannot: %s", self.path, done, exc)
        if done < len(looks):
            yield from pyav_frames(self.path, self.info, looks[done:])


class ArraySource:
    """Frames in memory, uint8 (N, H, W) or (N, H, W, 3), so many a second."""

    name = "in-memory video"

    def __init__(self, array: Any, rate: Any) -> None:
        if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not 0 < rate < np.inf:
            raise MediaError(f"expected in-memory video with a `sampling_rate` in frames a second, got {rate!r}")
        values = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
        if values.dtype != np.uint8:
            raise MediaError(f"expected in-memory video of uint8 frames, got {values.dtype}")
        if values.ndim not in {3, 4} or (values.ndim == 4 and values.shape[-1] != 3) or not values.size:
            raise MediaError(
                "expected in-memory video of shape (frames, height, width) or (frames, height, width, 3), "
                f"got {values.shape}"
            )
        self._values = values if values.ndim == 4 else values[..., None]  # (N, H, W, 3 or 1)
        count, height, width = values.shape[:3]
        times = np.rint(np.arange(count + 1) * (MICROSECONDS / float(rate))).astype(np.int64)
        if not times[-1]:
            raise MediaError(
                f"in-memory video of {count} frames at {rate!r} a second lasts no time at all; expected its "
                "`sampling_rate` in frames a second"
            )
        self.info = VideoInfo(width, height, times[:-1], int(times[-1]), times[:1], 0)

    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.info.height, self.info.width

    def frames(self, looks: NDArray[np.int64]) -> Iterator[Frame]:
        """Yields the frames."""
        for index in frames_on_screen(self.info.times, looks):
            frame = self._values[index]
            yield np.broadcast_to(frame, (*frame.shape[:2], 3))  # (H, W, 3)
