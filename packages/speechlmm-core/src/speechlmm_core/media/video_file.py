"""What a video file holds, without decoding it: its size, and when each frame is shown. Imports no torch.

The time stamps stand in the packets, which are read through; their order in the file is the order of decoding, not of
showing. What an editor cut off without re-encoding is marked in the file and does not count.

Shapes: N frames of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import av
import av.error
import av.stream
import numpy as np
from numpy.typing import NDArray

from speechlmm_core.errors import MediaError
from speechlmm_core.media.pyav_reader import CONTAINERS, STATED_LENGTH, av_input
from speechlmm_core.media.source import MediaSource

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

MISSING_S = 0.5
"""Seconds that a file may lack of what its header promises: time stamps and durations are rounded."""
MICROSECONDS = 1_000_000
PLAIN_PIXELS = {"yuv420p", "yuvj420p"}


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file."""

    width: int
    """Pixels of a row, as stored; a player turns the pictures of some phones."""
    height: int
    """Rows, as stored."""
    times: NDArray[np.int64]
    """(N,) when each frame is shown, in microseconds from the first one, ascending."""
    duration: int
    """Microseconds from the first frame to the end of the last one."""
    keys: NDArray[np.int64]
    """Time stamps of the frames that decoding can start at, in the file's own units, ascending."""
    origin: int | None
    """Time stamp of the first frame in the file's own units; None where frames have none (AVI)."""
    plain_h264: bool = False
    """Whether the frames are 8-bit H.264 in MP4 or Matroska, as most corpora have them."""

    @property
    def duration_s(self) -> float:
        """Duration in seconds."""
        return self.duration / MICROSECONDS


def open_video(path: MediaSource) -> tuple[InputContainer, VideoStream]:
    """Opens a video file for reading; the caller closes the container.

    Raises:
        MediaError: The file is missing, or holds no video.
    """
    try:
        path.check("a video file")
        options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
        container = av.open(av_input(path), mode="r", options=options)
    except (av.error.FFmpegError, UnicodeError) as exc:
        raise unreadable(path, exc) from exc
    except OSError as exc:
        raise MediaError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return container, stream
    sound = bool(container.streams.audio)
    container.close()
    if sound:
        raise MediaError(f"{path}: holds sound but no video; give a video file, or use it as an `audio`")
    raise MediaError(f"{path}: holds no video; give a video file")


def video_info(path: MediaSource) -> VideoInfo:
    """Size, duration and time stamps of a video file; nothing is decoded.

    The last files are remembered, as the segments of a long recording often follow each other.

    Raises:
        MediaError: The file is missing, holds no video or no frame of it, or is damaged or truncated.
    """
    try:
        state = path.identity()
    except (OSError, ValueError):
        return _video_info.__wrapped__(path, "")
    return _video_info(path, state)


@lru_cache(maxsize=16)
def _video_info(path: MediaSource, _state: str) -> VideoInfo:
    container, stream = open_video(path)
    try:
        width, height = stream.codec_context.width, stream.codec_context.height
        if width <= 0 or height <= 0:
            raise MediaError(f"{path}: its frames are {width}x{height} pixels; convert it or record it again")
        return _scan(path, container, stream, width, height)
    except (av.error.FFmpegError, UnicodeError) as exc:
        raise unreadable(path, exc) from exc
    finally:
        container.close()


def _scan(path: MediaSource, container: InputContainer, stream: VideoStream, width: int, height: int) -> VideoInfo:
    stamps: list[int] = []
    lengths: list[int] = []
    keys: list[int] = []
    end_s = 0.0
    # AVI has times of decoding only; FFmpeg's guess at those of showing is wrong where frames are reordered.
    exact = container.format.name != "avi"
    for packet in container.demux():
        if packet.is_corrupt:
            raise truncated(path)
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or not packet.size:
            continue
        end_s = max(end_s, float((stamp + (packet.duration or 0)) * (packet.time_base or 0)))
        if packet.stream_index != stream.index or packet.is_discard:
            continue
        exact = exact and packet.pts is not None
        stamps.append(stamp)
        lengths.append(packet.duration or 0)
        if packet.is_keyframe:
            keys.append(stamp)
    names = set(container.format.name.split(","))
    if STATED_LENGTH & names and container.duration and container.duration / MICROSECONDS > end_s + MISSING_S:
        raise truncated(path)
    if not stamps:
        raise MediaError(f"{path}: the video has no frames; leave it out or record it again")
    found = np.unique(np.array(stamps, np.int64))
    unit = float(stream.time_base or 0) * MICROSECONDS
    times = np.rint((found - found[0]) * unit).astype(np.int64)  # (N,)
    last = round(lengths[int(np.argmax(stamps))] * unit) or _usual_step(times, stream)
    origin = int(found[0]) if exact else None
    plain = stream.codec_context.name == "h264" and stream.codec_context.pix_fmt in PLAIN_PIXELS
    return VideoInfo(
        width=width,
        height=height,
        times=times,
        duration=int(times[-1]) + last,
        keys=np.unique(np.array(keys, np.int64)),
        origin=origin,
        plain_h264=plain and not names.isdisjoint({"mp4", "matroska"}),
    )


def _usual_step(times: NDArray[np.int64], stream: VideoStream) -> int:
    """Microseconds between frames, for the last one where the file does not tell."""
    if len(times) > 1:
        return int(np.median(np.diff(times)))
    return round(MICROSECONDS / stream.average_rate) if stream.average_rate else MICROSECONDS // 25


def truncated(path: MediaSource) -> MediaError:
    """The error of a file that ends early."""
    return MediaError(f"{path}: truncated: it ends before its last frame; copy or download it again")


def unreadable(path: MediaSource, reason: object) -> MediaError:
    """The error of a file that FFmpeg cannot read."""
    why = getattr(reason, "strerror", None) or str(reason)
    return MediaError(f"{path}: not a video file that can be read, or a damaged one ({why}); check it or convert it")
