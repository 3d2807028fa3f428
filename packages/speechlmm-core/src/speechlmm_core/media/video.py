"""Loads video: any common format, rate and size becomes uint8 frames at the rate and size asked for.

Frames are decoded by decord where it is installed, else by FFmpeg through PyAV; both give the same frames. Which ones,
`speechlmm_core.media.video_lengths` says. Grey is ITU-R BT.601 luma. Size and duration are checked before anything is
decoded, and no more than the result and a few frames is held in memory. Imports torch late.

Shapes: T frames of the result, H rows, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.errors import MediaError
from speechlmm_core.media.audio_lengths import segment_bounds
from speechlmm_core.media.face_finder import check_face_finder, face_finder
from speechlmm_core.media.medium import Medium
from speechlmm_core.media.mouth_crop import SIDE, FaceFinder, cut_mouth, track_mouth
from speechlmm_core.media.video_file import MICROSECONDS
from speechlmm_core.media.video_frames import Frame, centre_cut, resize, to_grey
from speechlmm_core.media.video_lengths import num_output_frames, sample_times
from speechlmm_core.media.video_source import VideoSource, source_of

MAX_DURATION_S = 30 * 60.0
"""Longest video that is loaded unless the options say otherwise; at 25 Hz and 88x88 grey 350 MB."""
MAX_PIXELS = 4096 * 2304
"""Largest frame that is decoded unless the options say otherwise."""
MAX_BYTES = 4 << 30
"""Largest result."""
MAX_MOUTH_SIDE = 112
"""Square frames up to this side are taken for mouth crops; crops of whole faces are larger (160 in LRS2)."""


@dataclass(frozen=True)
class VideoOptions:
    """How an encoder wants its video."""

    frame_rate: int = 25
    """Frames per second of the result."""
    size: tuple[int, int] | None = None
    """Height and width of the result; None for that of the file, or of the mouth crop."""
    grey: bool = True
    """Grey frames (T, H, W) instead of RGB (T, H, W, 3)."""
    crop: Literal["auto", "centre", "none"] = "auto"
    """`auto`: square frames of at most `MAX_MOUTH_SIDE` pixels are mouth crops, whose middle is taken; in any others
    the mouth is looked for. `centre`: the middle of any frame, not scaled. `none`: the whole frame, scaled."""
    max_duration_s: float = MAX_DURATION_S
    """Longer video is refused before anything is decoded."""
    max_pixels: int = MAX_PIXELS
    """Larger frames (width times height) are refused before anything is decoded."""


def load_video_item(item: Mapping[str, Any], options: VideoOptions, *, faces: FaceFinder | None = None) -> Medium:
    """Loads the video of a content item.

    Args:
        item: ``{"type": "video", "path": ..., "start"?: ..., "end"?: ...}`` (seconds), or ``{"type": "video", "array":
            ..., "sampling_rate": ...}`` with uint8 frames (T, H, W) or (T, H, W, 3) and their rate.
        options: What the result is to be.
        faces: What finds the faces where a mouth is to be cropped; MediaPipe by default.

    Returns:
        The frames (T, H, W), or (T, H, W, 3) in colour, uint8; T is what `video_item_length` says.

    Raises:
        MediaError: The item names no video; the file is missing, no video, empty, truncated, damaged, too long or too
            large, or has no such segment; no mouth is found in it.
    """
    import torch

    source = source_of(item)
    looks = _looks(source, item, options, check_mouth=faces is None)
    size = _size(source, options)
    channels = 1 if options.grey else 3
    needed = len(looks) * size[0] * size[1] * channels
    if needed > MAX_BYTES:
        raise MediaError(
            f"{source.name}: {len(looks)} frames of {size[1]}x{size[0]} pixels would take {needed / 2**30:.0f} GiB; "
            "ask for a segment of it by `start` and `end` (seconds), or for smaller frames"
        )
    crop = _crop(source, looks, options, size, faces)
    values = np.empty((len(looks), *size, channels), np.uint8)  # (T, H, W, C)
    for number, frame in enumerate(source.frames(looks)):
        picture = crop(number, frame)
        values[number] = to_grey(picture) if options.grey else picture
    tensor = torch.from_numpy(values)
    return Medium(tensor[..., 0] if options.grey else tensor, options.frame_rate)


def video_item_length(item: Mapping[str, Any], options: VideoOptions) -> int:
    """Number of frames that `load_video_item` returns for the item, without decoding any.

    Raises:
        MediaError: As `load_video_item`, for what can be told without decoding.
    """
    return len(_looks(source_of(item), item, options, check_mouth=True))


def _looks(
    source: VideoSource, item: Mapping[str, Any], options: VideoOptions, *, check_mouth: bool
) -> NDArray[np.int64]:
    """(T,) when the frames of the result are looked at, in microseconds.

    Raises:
        MediaError: There is no such segment, the video is too long or too large, or its mouths cannot be cropped.
    """
    info, name = source.info, source.name
    if info.width * info.height > options.max_pixels:
        raise MediaError(
            f"{name}: its frames of {info.width}x{info.height} pixels are larger than the limit of "
            f"{options.max_pixels} pixels; scale the video down"
        )
    start, end = item.get("start"), item.get("end")
    first, last = segment_bounds(info.duration, MICROSECONDS, start, end, name=name, what="video")
    if last - first > options.max_duration_s * MICROSECONDS:
        raise MediaError(
            f"{name}: {(last - first) / MICROSECONDS / 60:.1f} minutes of video, more than the limit of "
            f"{options.max_duration_s / 60:.1f} minutes; ask for a segment of it by `start` and `end` (seconds)"
        )
    if check_mouth and _needs_mouth(source, options):
        check_face_finder(name)
    return sample_times(first, num_output_frames(last - first, options.frame_rate), options.frame_rate)


def is_mouth_crop(height: int, width: int) -> bool:
    """Whether frames of this size are taken for mouth crops."""
    return height == width <= MAX_MOUTH_SIDE


def _needs_mouth(source: VideoSource, options: VideoOptions) -> bool:
    return options.crop == "auto" and not is_mouth_crop(source.info.height, source.info.width)


def _size(source: VideoSource, options: VideoOptions) -> tuple[int, int]:
    """Height and width of the result."""
    if options.size is not None:
        return options.size
    return (SIDE, SIDE) if _needs_mouth(source, options) else source.size()


def _crop(
    source: VideoSource,
    looks: NDArray[np.int64],
    options: VideoOptions,
    size: tuple[int, int],
    faces: FaceFinder | None,
) -> Callable[[int, Frame], Frame]:
    """What makes the picture of the result of its number and its frame."""
    if options.crop == "none":
        return lambda _, frame: resize(frame, size)
    if not _needs_mouth(source, options):
        return lambda _, frame: centre_cut(frame, size)
    # A first pass over the video, of which only three points a frame are kept.
    find = face_finder(source.name) if faces is None else faces
    track = track_mouth(source.frames(looks), find, frame_rate=options.frame_rate, name=source.name)
    return lambda number, frame: centre_cut(cut_mouth(frame, track.centres[number], track.turns[number]), size)
