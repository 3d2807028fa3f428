"""Decodes the frames of a video by FFmpeg, through PyAV. Imports no torch.

Shapes: H rows, W pixels, T frames of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import av.error
import numpy as np
from numpy.typing import NDArray

from speechlmm_core.errors import MediaError
from speechlmm_core.media.source import MediaSource
from speechlmm_core.media.video_file import MICROSECONDS, MISSING_S, VideoInfo, open_video, truncated, unreadable
from speechlmm_core.media.video_lengths import frames_on_screen

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Frame = np.ndarray[Any, np.dtype[np.uint8]]


def pyav_frames(path: MediaSource, info: VideoInfo, looks: NDArray[np.int64]) -> Iterator[Frame]:
    """Yields the RGB frame (H, W, 3) that is on screen at each of ``looks`` (T,), turned as a player shows it.

    Decoding begins at the last key frame before the first look. One frame is held at a time, and only those that are
    looked at are converted.

    Raises:
        MediaError: The file is damaged, or fewer frames can be decoded than it promises.
    """
    reader = _Reader(path, info)
    try:
        yield from reader.on_screen(looks)
    except (av.error.FFmpegError, UnicodeError) as exc:
        raise unreadable(path, exc) from exc
    finally:
        reader.container.close()


def rotation(path: MediaSource) -> int:
    """Quarter turns against the clock by which a player turns the pictures of the file: the camera was held askew.

    Raises:
        MediaError: The first frame cannot be decoded.
    """
    container, stream = open_video(path)
    try:
        first = next(container.decode(stream), None)
    except av.error.FFmpegError as exc:
        raise unreadable(path, exc) from exc
    finally:
        container.close()
    if first is None:
        raise truncated(path)
    return round(first.rotation / 90)


class _Reader:
    """One pass over the frames of a file."""

    container: InputContainer
    stream: VideoStream

    def __init__(self, path: MediaSource, info: VideoInfo) -> None:
        self.path, self.info = path, info
        self._open()

    def _open(self) -> None:
        self.container, self.stream = open_video(self.path)
        self.stream.codec_context.thread_count = 1  # data workers are many already
        self.unit = float(self.stream.time_base or 0) * MICROSECONDS

    def on_screen(self, looks: NDArray[np.int64]) -> Iterator[Frame]:
        current: VideoFrame | None = None
        shown = done = 0
        for number, frame in enumerate(self._frames_from(int(looks[0]))):
            begins = self._time(number, frame)
            ready = int(np.searchsorted(looks, begins)) if current is not None else 0
            if current is not None and ready > done:
                yield from self._repeat(current, ready - done)
                done = ready
            current, shown = frame, begins
            if done == len(looks):
                return
        expected = self.info.times[frames_on_screen(self.info.times, looks[-1:])][0]
        if current is None or expected > shown + MISSING_S * MICROSECONDS:
            raise truncated(self.path)
        yield from self._repeat(current, len(looks) - done)

    def _repeat(self, frame: VideoFrame, count: int) -> Iterator[Frame]:
        if (frame.width, frame.height) != (self.info.width, self.info.height):
            raise MediaError(f"{self.path}: the size of its frames changes on the way; convert it to one size")
        values: Any = frame.to_ndarray(format="rgb24")
        picture: Frame = np.rot90(values, round(frame.rotation / 90))  # (H, W, 3)
        for _ in range(count):
            yield picture

    def _time(self, number: int, frame: VideoFrame) -> int:
        """When a frame is shown, in microseconds from the first; without time stamps by its number."""
        if self.info.origin is None or frame.pts is None:
            return int(self.info.times[min(number, len(self.info.times) - 1)])
        return round((frame.pts - self.info.origin) * self.unit)

    def _frames_from(self, first: int) -> Iterator[VideoFrame]:
        """The frames from the last key frame before ``first`` microseconds on; from the start where seeking fails."""
        origin, keys = self.info.origin, self.info.keys
        before = int(np.searchsorted(keys, (origin or 0) + first / self.unit, side="right")) - 1
        if origin is None or before <= 0:
            return self.container.decode(self.stream)
        key = int(keys[before])
        try:
            self.container.seek(key, stream=self.stream)
            frames = self.container.decode(self.stream)
            # Frames that belong before the key frame may follow it in the file, and need what comes before it.
            head = next((frame for frame in frames if frame.pts is None or frame.pts >= key), None)
            if head is not None and head.pts == key:
                return chain([head], frames)
        except av.error.FFmpegError:
            pass
        self.container.close()
        self._open()
        return self.container.decode(self.stream)
