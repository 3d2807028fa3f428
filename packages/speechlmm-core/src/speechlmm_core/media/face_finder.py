"""Finds faces by MediaPipe, an extra that is imported late.

Its models are files that its wheel does not bring (both Apache-2.0); they are looked for below
`$PRETRAINED_COMPONENTS`: `blaze_face_short_range.tflite`, the detector that AutoAVSR's crops were made with (Bazarevsky
et al., 2019, "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", arXiv:1907.05047), or
`face_landmarker.task`, whose mesh of the face is finer and which is taken first.

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

LANDMARKER = "face_landmarker.task"
DETECTOR = "blaze_face_short_range.tflite"
MODELS = (LANDMARKER, DETECTOR)
"""In the order in which they are looked for."""
MAX_FACES = 4
EYES_AND_MOUTH = ((33, 133), (362, 263), (61, 291, 0, 17))
"""Points of MediaPipe's face mesh whose mean is taken: the corners of the right eye, those of the left one, and the
corners of the mouth with the middle of both lips' outer edge."""
DETECTED = (0, 1, 3)
"""Points of the detector that are taken: right eye, left eye and the middle of the mouth."""


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
            f"pip install 'speechlmm-core[mediapipe]' (in a clone: uv sync --extra mediapipe), or {first}"
        )
    root = os.environ.get("PRETRAINED_COMPONENTS")
    there = [path for path in (Path(root).expanduser() / model for model in MODELS) if path.is_file()] if root else []
    if not there:
        raise MediaError(
            f"{name}: not a mouth crop, and mediapipe's model, which would find the mouth, is missing; put "
            f"{LANDMARKER} (MediaPipe's Face Landmarker) or {DETECTOR} (its face detector) below "
            f"$PRETRAINED_COMPONENTS, or {first}"
        )
    return there[0].absolute()


@lru_cache(maxsize=1)
def _finder(model: Path) -> FaceFinder:
    return MediaPipeFaces(model)


class MediaPipeFaces:
    """MediaPipe's Face Landmarker or its face detector, by the model's name, frame by frame.

    Raises:
        MediaError: The model's file cannot be used.
    """

    def __init__(self, model: Path) -> None:
        import mediapipe

        self._mediapipe: Any = mediapipe
        self._detects = model.suffix == ".tflite"
        vision: Any = mediapipe.tasks.vision
        try:
            base = mediapipe.tasks.BaseOptions(model_asset_path=str(model))
            if self._detects:
                options = vision.FaceDetectorOptions(base_options=base)
                self._model: Any = vision.FaceDetector.create_from_options(options)
            else:
                options = vision.FaceLandmarkerOptions(base_options=base, num_faces=MAX_FACES)
                self._model = vision.FaceLandmarker.create_from_options(options)
        except (OSError, RuntimeError, ValueError) as exc:
            raise MediaError(f"{model}: mediapipe cannot use this model ({exc}); download it again") from exc

    def __call__(self, frame: Frame) -> Points:
        """Finds the faces in an RGB frame (H, W, 3)."""
        image = self._mediapipe.Image(self._mediapipe.ImageFormat.SRGB, np.ascontiguousarray(frame))
        result = self._model.detect(image)
        if self._detects:
            faces = [[[one.keypoints[i]] for i in DETECTED] for one in result.detections if one.keypoints]
        else:
            faces = [[[face[i] for i in indices] for indices in EYES_AND_MOUTH] for face in result.face_landmarks]
        size = (frame.shape[1], frame.shape[0])
        found = [[np.mean([(p.x, p.y) for p in points], axis=0) * size for points in face] for face in faces]
        return np.array(found, np.float64).reshape(-1, 3, 2)
