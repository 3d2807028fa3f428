"""The mouth is found, followed and cut out, with a face finder that knows where the drawn face is."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from speechlmm_core.errors import MediaError
from speechlmm_core.media import face_finder
from speechlmm_core.media.mouth_crop import EYE_DISTANCE, MEAN_FACE, SIDE, cut_mouth, smooth_shape, track_mouth
from speechlmm_core.media.video import VideoOptions, load_video_item

SIZE = (200, 240)


def face(x: float, y: float, scale: float = 1.0, degrees: float = 0.0) -> np.ndarray:
    """Eyes and mouth (3, 2) of the mean face with its mouth at (x, y), so many times as large, turned clockwise."""
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return MEAN_FACE @ turn.T * scale + (x, y)


def draw(points: np.ndarray, scale: float = 1.0, degrees: float = 0.0) -> np.ndarray:
    """A frame with a smooth picture that moves, grows and turns with the face."""
    angle = math.radians(degrees)
    down, across = np.mgrid[: SIZE[0], : SIZE[1]]
    x, y = across - points[2, 0], down - points[2, 1]
    u = (x * math.cos(angle) + y * math.sin(angle)) / scale
    v = (-x * math.sin(angle) + y * math.cos(angle)) / scale
    return picture(u, v)


def picture(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The picture in the face's own coordinates, which has no symmetry."""
    channels = [128 + 50 * np.sin(u / 9 + 1) + 50 * np.cos(v / 11), 128 + u, 128 + v]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


def expected_crop() -> np.ndarray:
    steps = np.arange(SIDE) - (SIDE - 1) / 2
    u, v = np.meshgrid(steps, steps)
    return picture(u, v)


class Known:
    """Finds the faces that it is told of, frame by frame."""

    def __init__(self, faces: list[list[np.ndarray]]) -> None:
        self.faces = iter(faces)
        self.calls = 0

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        self.calls += 1
        assert frame.shape == (*SIZE, 3)
        return np.array(next(self.faces), np.float64).reshape(-1, 3, 2)


@pytest.mark.parametrize("place", [(120.0, 110.0, 1.0, 0.0), (100.5, 90.25, 0.8, 25.0), (130.0, 120.0, 1.6, -15.0)])
def test_the_mouth_comes_out_upright_and_of_one_size(place: tuple[float, float, float, float]) -> None:
    x, y, scale, degrees = place
    points = face(*place)
    track = track_mouth([draw(points, scale, degrees)], Known([[points]]), frame_rate=25, name="v")
    np.testing.assert_allclose(track.centres[0], (x, y))
    angle = math.radians(degrees)
    np.testing.assert_allclose(track.turns[0], (scale * math.cos(angle), scale * math.sin(angle)))
    crop = cut_mouth(draw(points, scale, degrees), track.centres[0], track.turns[0])
    assert crop.shape == (SIDE, SIDE, 3)
    inner = slice(8, -8) if scale < 1.5 else slice(20, -20)  # the rest may lie outside the frame
    difference = np.abs(crop.astype(int) - expected_crop())[inner, inner]
    assert difference.max() <= 5


def test_the_transform_has_the_least_squared_error() -> None:
    points = face(120, 110, 1.2, 10) + np.random.default_rng(0).normal(0, 4, (3, 2))
    turn = track_mouth([np.zeros((*SIZE, 3), np.uint8)], Known([[points]]), frame_rate=25, name="v").turns[0]
    model, found = MEAN_FACE - MEAN_FACE.mean(0), points - points.mean(0)

    def error(a: float, b: float) -> float:
        moved = model @ np.array([[a, b], [-b, a]])
        return float(((moved - found) ** 2).sum())

    best = error(*turn)
    assert all(error(turn[0] + da, turn[1] + db) > best for da, db in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)))


def test_faces_are_interpolated_where_none_is_found() -> None:
    faces = [face(80 + 2 * i, 100 + i) for i in range(20)]
    seen = [[one] if i not in {0, 1, 7, 8, 9, 18, 19} else [] for i, one in enumerate(faces)]
    frames = [np.full((*SIZE, 3), i, np.uint8) for i in range(20)]
    track = track_mouth(frames, Known(seen), frame_rate=25, name="v")
    np.testing.assert_allclose(track.centres[2:18], [(80 + 2 * i, 100 + i) for i in range(2, 18)])
    np.testing.assert_allclose(track.centres[:2], [(84, 102)] * 2, err_msg="held before the first")
    np.testing.assert_allclose(track.centres[18:], [(114, 117)] * 2, err_msg="and after the last")


def test_one_face_is_followed_among_several_and_frames_are_searched_once() -> None:
    mine = [face(70 + i, 100, 1.2) for i in range(6)]
    other = [face(180 - i, 100, 1.0 + 0.1 * i) for i in range(6)]
    frames = [np.full((*SIZE, 3), i, np.uint8) for i in range(6)]
    find = Known([[b, a] if i % 2 else [a, b] for i, (a, b) in enumerate(zip(mine, other, strict=True))])
    repeated = [frame for frame in frames for _ in range(2)]
    track = track_mouth(repeated, find, frame_rate=25, name="v")
    np.testing.assert_allclose(track.centres, [(70 + i, 100) for i in range(6) for _ in range(2)])
    assert find.calls == 6


def test_the_shape_is_smoothed_and_the_place_is_not() -> None:
    rng = np.random.default_rng(0)
    points = np.stack([face(100 + 5 * i, 90) for i in range(15)]) + rng.normal(0, 2, (15, 3, 2))
    smooth = smooth_shape(points, 4)
    np.testing.assert_allclose(smooth.mean(1), points.mean(1))
    for i in range(15):
        near = [points[j] - points[j].mean(0) for j in range(max(0, i - 2), min(15, i + 3))]
        np.testing.assert_allclose(smooth[i] - smooth[i].mean(0), np.mean(near, axis=0))


def test_a_square_beyond_the_frame_goes_on_with_its_border() -> None:
    frame = np.zeros((50, 60, 3), np.uint8)
    frame[:, :30] = 200
    crop = cut_mouth(frame, np.array([-500.0, 20.0]), np.array([1.0, 0.0]))
    assert (crop == 200).all()
    assert (cut_mouth(frame, np.array([900.0, 900.0]), np.array([1.0, 0.0])) == 0).all()


def test_a_video_of_a_face_becomes_mouth_crops(tmp_path: Path, write_video: Any) -> None:
    places = [(110 + i, 100 + i, 1 + 0.01 * i, 2.0 * i) for i in range(12)]
    frames = [draw(face(*place), *place[2:]) for place in places]
    path = write_video(tmp_path / "face.mp4", frames, crf="5")
    find = Known([[face(*place)] for place in places])
    item = {"path": path}
    medium = load_video_item(item, VideoOptions(size=(88, 88), grey=False), faces=find)
    assert medium.values.shape == (12, 88, 88, 3)
    expected = torch.from_numpy(expected_crop()[4:92, 4:92]).float()
    assert (medium.values.float() - expected)[:, 10:-10, 10:-10].abs().mean() < 6
    whole = load_video_item(item, VideoOptions(), faces=Known([[face(*place)] for place in places]))
    assert whole.values.shape == (12, SIDE, SIDE)
    eyes = np.linalg.norm(MEAN_FACE[0] - MEAN_FACE[1])
    assert eyes == EYE_DISTANCE


def test_a_video_without_a_face_says_so(tmp_path: Path, write_video: Any) -> None:
    path = write_video(tmp_path / "a.mp4", 3, size=SIZE)
    with pytest.raises(MediaError, match=r"a\.mp4: no face is found in any of its 3 frames; crop the mouths first"):
        load_video_item({"path": path}, VideoOptions(), faces=Known([[], [], []]))


def test_mediapipes_points_become_eyes_and_mouth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [SimpleNamespace(x=i / 1000, y=i / 2000) for i in range(478)]
    made: list[Any] = []

    def create(options: Any) -> Any:
        made.append(options)
        if "bad" in options["base_options"]["model_asset_path"]:
            raise RuntimeError("Unable to open zip archive.")
        return SimpleNamespace(detect=lambda image: SimpleNamespace(face_landmarks=[points, points]))

    def create_detector(options: Any) -> Any:
        made.append(options)
        face = SimpleNamespace(keypoints=points[10:16])
        return SimpleNamespace(detect=lambda image: SimpleNamespace(detections=[face]))

    vision = SimpleNamespace(
        FaceLandmarkerOptions=lambda **options: options,
        FaceLandmarker=SimpleNamespace(create_from_options=create),
        FaceDetectorOptions=lambda **options: options,
        FaceDetector=SimpleNamespace(create_from_options=create_detector),
    )
    tasks = SimpleNamespace(BaseOptions=lambda **options: options, vision=vision)
    fake = SimpleNamespace(tasks=tasks, Image=lambda kind, data: data, ImageFormat=SimpleNamespace(SRGB=1))
    monkeypatch.setitem(sys.modules, "mediapipe", fake)
    found = face_finder.MediaPipeFaces(tmp_path / "m.task")(np.zeros((*SIZE, 3), np.uint8))
    assert made[0]["base_options"] == {"model_asset_path": str(tmp_path / "m.task")}
    assert found.shape == (2, 3, 2)
    for row, indices in zip(found[0], ((33, 133), (362, 263), (61, 291, 0, 17)), strict=True):
        mean = sum(indices) / len(indices)
        np.testing.assert_allclose(row, (mean / 1000 * SIZE[1], mean / 2000 * SIZE[0]))
    detected = face_finder.MediaPipeFaces(tmp_path / "m.tflite")(np.zeros((*SIZE, 3), np.uint8))
    assert made[-1]["base_options"] == {"model_asset_path": str(tmp_path / "m.tflite")}
    np.testing.assert_allclose(detected, [[(i / 1000 * SIZE[1], i / 2000 * SIZE[0]) for i in (10, 11, 13)]])
    with pytest.raises(MediaError, match=r"bad\.task: mediapipe cannot use this model \(Unable to open zip archive"):
        face_finder.MediaPipeFaces(tmp_path / "bad.task")
