"""Cuts the mouth out of a video of a talking face, upright and always as large.

As in AutoAVSR (Ma, Haliassos, Fernandez-Lopez, Chen, Petridis, Pantic, 2023, arXiv 2303.14307), a similarity transform
brings the face of each frame onto a mean face, from landmarks that are interpolated where no face is found and whose
shape is smoothed over half a second, and a square around the mouth is cut out. The mean face is the middle of the eyes
and of the mouth in the proportions of an adult's head.

Shapes: T frames, F faces in a frame, H rows, W pixels, C channels; points are (x, y) in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.errors import MediaError
from speechlmm_core.media.video_frames import Frame, resize

Points = NDArray[np.float64]

SIDE = 96
"""Side of the square in pixels."""
EYE_DISTANCE = 54.0
"""Pixels between the middles of the eyes; a mouth is then some 43 pixels wide."""
MEAN_FACE = EYE_DISTANCE * np.array([[-0.5, -1.1], [0.5, -1.1], [0.0, 0.0]])
"""(3, 2) right eye, left eye and mouth, from the mouth on: they are 63 mm apart, and 69 mm above it."""
SMOOTHING_S = 0.5
"""Seconds over which the shape of the face is averaged."""


class FaceFinder(Protocol):
    """Finds faces."""

    def __call__(self, frame: Frame) -> Points:
        """Finds the faces in a frame.

        Args:
            frame: RGB (H, W, 3).

        Returns:
            (F, 3, 2): for each face the middle of its right eye (which is on the left of the picture), of its left
            eye, and of its mouth, in pixels.
        """
        ...


@dataclass(frozen=True)
class MouthTrack:
    """Where the mouth is in each frame."""

    centres: Points
    """(T, 2) the middle of the square."""
    turns: Points
    """(T, 2) the step in the frame from one pixel of a row of the square to the next: its length is the scale."""


def track_mouth(frames: Iterable[Frame], find: FaceFinder, *, frame_rate: int, name: str) -> MouthTrack:
    """Follows the mouth of one face through a video: the largest at first, then the one that is nearest to it.

    Raises:
        MediaError: No face is found in any frame.
    """
    rows: list[Points | None] = []
    before: Frame | None = None
    last: Points | None = None
    for frame in frames:
        if frame is not before:
            found = find(frame)
            picked = _pick(found, last) if len(found) else None
            last = last if picked is None else picked
            before = frame
        else:
            picked = rows[-1]
        rows.append(picked)
    seen = np.array([index for index, row in enumerate(rows) if row is not None])
    if not len(seen):
        raise MediaError(
            f"{name}: no face is found in any of its {len(rows)} frames; crop the mouths first ({SIDE}x{SIDE} pixels), "
            "or leave this video out"
        )
    known = np.stack([row for row in rows if row is not None]).reshape(len(seen), -1)  # (n, 6)
    every = np.arange(len(rows))
    points = np.stack([np.interp(every, seen, column) for column in known.T], axis=1).reshape(-1, 3, 2)  # (T, 3, 2)
    return _place(smooth_shape(points, round(SMOOTHING_S * frame_rate)))


def _pick(faces: Points, last: Points | None) -> Points:
    if last is None:
        measure = -np.linalg.norm(faces[:, 0] - faces[:, 1], axis=-1)  # (F,)
    else:
        measure = np.linalg.norm(faces - last, axis=-1).sum(-1)  # (F,)
    return faces[int(np.argmin(measure))]


def smooth_shape(points: Points, window: int) -> Points:
    """Averages the shape of (T, 3, 2) over ``window`` frames around each; where the face is stays as it was."""
    middles = points.mean(axis=1, keepdims=True)  # (T, 1, 2)
    shapes = points - middles
    total = np.concatenate([np.zeros((1, 3, 2)), np.cumsum(shapes, axis=0)])
    every = np.arange(len(points))
    first, last = np.maximum(every - window // 2, 0), np.minimum(every + window // 2 + 1, len(points))
    return middles + (total[last] - total[first]) / (last - first)[:, None, None]


def _place(points: Points) -> MouthTrack:
    """The similarity that takes `MEAN_FACE` onto (T, 3, 2) with the least squared error (Umeyama, 1991)."""
    model = MEAN_FACE - MEAN_FACE.mean(axis=0)  # (3, 2)
    found = points - points.mean(axis=1, keepdims=True)  # (T, 3, 2)
    # As complex numbers, the best factor is the one of a regression through the origin; its angle is the rotation.
    along = (found * model).sum((1, 2))
    across = (model[:, 0] * found[:, :, 1] - model[:, 1] * found[:, :, 0]).sum(1)
    turns = np.stack([along, across], axis=1) / (model**2).sum()  # (T, 2)
    return MouthTrack(points[:, 2], turns)


def cut_mouth(frame: Frame, centre: Points, turn: Points) -> Frame:
    """Cuts the square around ``centre`` out of (H, W, C), turned and scaled; outside the frame its border goes on.

    Returns:
        (SIDE, SIDE, C).
    """
    import torch

    scale = max(float(np.hypot(*turn)), 1e-3)
    reach = int(np.ceil(scale * SIDE * 0.75)) + 2  # half the diagonal of the square, and a little
    height, width, _ = frame.shape
    left, top = (int(np.clip(np.floor(c) - reach, 0, n - 1)) for c, n in zip(centre, (width, height), strict=True))
    right, bottom = (int(np.clip(np.ceil(c) + reach, 1, n)) for c, n in zip(centre, (width, height), strict=True))
    patch = frame[top : max(bottom, top + 1), left : max(right, left + 1)]
    shrink = max(1.0, scale)
    # Averaged first where it gets smaller, as four neighbours do not make a good mean of many pixels.
    small = resize(patch, (max(1, round(patch.shape[0] / shrink)), max(1, round(patch.shape[1] / shrink))))
    steps = np.arange(SIDE) - (SIDE - 1) / 2
    across, down = np.meshgrid(steps, steps)  # (SIDE, SIDE)
    x = (centre[0] + turn[0] * across - turn[1] * down - left + 0.5) / patch.shape[1] * 2 - 1
    y = (centre[1] + turn[1] * across + turn[0] * down - top + 0.5) / patch.shape[0] * 2 - 1
    grid = torch.from_numpy(np.stack([x, y], axis=-1)[None]).float()  # (1, SIDE, SIDE, 2)
    values = torch.from_numpy(np.ascontiguousarray(small)).permute(2, 0, 1)[None].float()  # (1, C, h, w)
    square: Any = torch.nn.functional.grid_sample(values, grid, padding_mode="border", align_corners=False)
    return square[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()  # (SIDE, SIDE, C)
