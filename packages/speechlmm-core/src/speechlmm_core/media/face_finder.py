"""Finds faces by MediaPipe's Face Landmarker, an extra that is imported late.

The model is a file that its wheel does not bring (`face_landmarker.task`, Apache-2.0); it is looked for below
`$PRETRAINED_COMPONENTS`.

Shapes: F faces, H rows, W pixels.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from speechlmm_core.errors import MediaError
from speechlmm_core.media.mouth_crop import SIDE, FaceFinder, Points
from speechlmm_core.media.video_frames import Frame

MODEL = "face_landmarker.task"
MAX_FACES = 4
EYES_AND_MOUTH = ((33, 133), (362, 263), (61, 291, 0, 17))
"""Points of MediaPipe's face mesh whose mean is taken: the corners of the right eye, those of the left one, and the
corners of the mouth with the middle of both lips' outer edge."""


def face_finder(name: str) -> FaceFinder:
    """The finder for the video ``name``.

    Raises:
        MediaError: MediaPipe or its model is missing.
    """
    return _finder(check_face_finder(name))


def check_face_finder(name: str) -> Path:
    """The model's file, without loading it.

    Raises:
        MediaError: MediaPipe or its model is missing.
    """
    first = f"crop the mouths first (square frames, {SIDE}x{SIDE} pixels)"
    if find_spec("mediapipe") is None:
        raise MediaError(
            f"{name}: not a mouth crop, and mediapipe, which would find the mouth, is not installed; "
            f"pip install 'speechlmm-core[mediapipe]', or {first}"
        )
    root = os.environ.get("PRETRAINED_COMPONENTS")
    model = Path(root).expanduser() / MODEL if root else None
    if model is None or not model.is_file():
        raise MediaError(
            f"{name}: not a mouth crop, and mediapipe's model, which would find the mouth, is missing; put {MODEL} "
            f"(MediaPipe's Face Landmarker) below $PRETRAINED_COMPONENTS, or {first}"
        )
    return model.absolute()


@lru_cache(maxsize=1)
def _finder(model: Path) -> FaceFinder:
    return MediaPipeFaces(model)


class MediaPipeFaces:
    """MediaPipe's Face Landmarker, frame by frame.

    Raises:
        MediaError: The model's file cannot be used.
    """

    def __init__(self, model: Path) -> None:
        import mediapipe

        self._mediapipe: Any = mediapipe
        tasks: Any = mediapipe.tasks
        try:
            options = tasks.vision.FaceLandmarkerOptions(
                base_options=tasks.BaseOptions(model_asset_path=str(model)), num_faces=MAX_FACES
            )
            self._landmarker: Any = tasks.vision.FaceLandmarker.create_from_options(options)
        except (OSError, RuntimeError, ValueError) as exc:
            raise MediaError(f"{model}: mediapipe cannot use this model ({exc}); download it again") from exc

    def __call__(self, frame: Frame) -> Points:
        """Finds the faces in an RGB frame (H, W, 3)."""
        image = self._mediapipe.Image(self._mediapipe.ImageFormat.SRGB, np.ascontiguousarray(frame))
        faces = self._landmarker.detect(image).face_landmarks
        size = (frame.shape[1], frame.shape[0])
        found = [
            [np.mean([(face[i].x, face[i].y) for i in indices], axis=0) * size for indices in EYES_AND_MOUTH]
            for face in faces
        ]
        return np.array(found, np.float64).reshape(-1, 3, 2)
