"""Every way in which a video can be unusable gives one clear line."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from speechlmm_core.errors import MediaError
from speechlmm_core.media import face_finder, video
from speechlmm_core.media.video import VideoOptions, load_video_item, video_item_length

WHOLE = VideoOptions(crop="none")


def refusal(path: Path, options: VideoOptions = WHOLE, *, decoding: bool = False, **segment: Any) -> str:
    """The error's message, which is one line and names the file, and stands before decoding where it can."""
    item = {"type": "video", "path": str(path), **segment}
    with pytest.raises(MediaError) as caught:
        load_video_item(item, options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    if not decoding:
        with pytest.raises(MediaError) as caught:
            video_item_length(item, options)
        assert str(caught.value) == message
    return message


def test_what_is_no_video_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.mp4")
    assert "this is a folder" in refusal(tmp_path)
    (tmp_path / "empty.mp4").touch()
    assert "0 bytes" in refusal(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("not a video at all " * 100)
    assert "not a video file that can be read" in refusal(tmp_path / "text.mp4")


def test_sound_without_pictures(tmp_path: Path, write_video: Any) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), 16_000)
    assert "holds sound but no video; give a video file, or use it as an `audio`" in refusal(tmp_path / "a.wav")
    # The cover of an album is stored like a video of one frame.
    write_video(tmp_path / "with.mp4", 2, sound_s=0.2)
    with av.open(str(tmp_path / "with.mp4")) as source, av.open(str(tmp_path / "cover.mp4"), "w") as file:
        picture = file.add_stream("mjpeg", rate=25)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        sound = file.add_stream_from_template(source.streams.audio[0])
        file.mux(picture.encode(av.VideoFrame(32, 32, "yuvj420p")))
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = sound
                file.mux(packet)
    assert "holds sound but no video" in refusal(tmp_path / "cover.mp4")


@pytest.mark.parametrize("name", ["none.mp4", "none.avi"])
def test_a_video_without_frames(name: str, tmp_path: Path) -> None:
    with av.open(str(tmp_path / name), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        file.start_encoding()
    # FFmpeg drops a stream of an MP4 file that has nothing in it.
    expected = "holds no video; give a video file" if name == "none.mp4" else "the video has no frames"
    assert expected in refusal(tmp_path / name)


def with_size(path: Path, width: int, height: int, write_video: Any) -> Path:
    """An AVI file of raw pictures whose header is changed to another size."""
    write_video(path, 3, codec="rawvideo", size=(32, 48))
    data = path.read_bytes()
    old = (48).to_bytes(4, "little") + (32).to_bytes(4, "little")
    assert old in data
    path.write_bytes(data.replace(old, width.to_bytes(4, "little") + height.to_bytes(4, "little")))
    return path


def test_absurd_sizes(tmp_path: Path, write_video: Any) -> None:
    assert "0x0 pixels" in refusal(with_size(tmp_path / "zero.avi", 0, 0, write_video))
    message = refusal(with_size(tmp_path / "huge.avi", 16_000, 16_000, write_video))
    assert "16000x16000 pixels are larger than the limit" in message
    assert "scale the video down" in message
    path = write_video(tmp_path / "a.mp4", 3)
    assert "96x96 pixels are larger than the limit of 9000" in refusal(path, VideoOptions(max_pixels=9000))


def test_too_long_or_too_large_a_result(tmp_path: Path, write_video: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 75)
    short = VideoOptions(crop="none", max_duration_s=1.0)
    message = refusal(path, short)
    assert "minutes of video, more than the limit" in message
    assert "`start` and `end`" in message
    assert load_video_item({"path": path, "start": 1.0, "end": 2.0}, short).num_samples == 25
    monkeypatch.setattr(video, "MAX_BYTES", 75 * 96 * 96 - 1)
    assert "75 frames of 96x96 pixels would take" in refusal(path, decoding=True)
    assert load_video_item({"path": path}, VideoOptions(crop="none", size=(95, 95))).num_samples == 75


def test_segments_that_do_not_exist(tmp_path: Path, write_video: Any) -> None:
    path = write_video(tmp_path / "a.mp4", 50)
    assert "starts at 2.5 s, but the video is only 2.000 s long" in refusal(path, start=2.5)
    assert "ends at 3 s, but the video is only 2.000 s long" in refusal(path, start=0.5, end=3)
    assert "start (1.5 s) must lie before its end (0.5 s)" in refusal(path, start=1.5, end=0.5)
    assert "expected the segment's end in seconds" in refusal(path, end="late")
    assert "0 or more" in refusal(path, start=-1)
    assert load_video_item({"path": path, "end": 2.04}, WHOLE).num_samples == 50


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", {}), ("fast.mp4", {"movflags": "faststart"}), ("a.mkv", {}), ("a.avi", {})],
)
def test_a_truncated_file(name: str, options: dict[str, str], tmp_path: Path, write_video: Any) -> None:
    frames = list(np.random.default_rng(0).integers(0, 256, (75, 64, 64, 3), np.uint8))
    path = write_video(tmp_path / name, frames, codec="mpeg4", container=options)
    assert load_video_item({"path": path}, WHOLE).num_samples == 75
    data = path.read_bytes()
    for part in (0.3, 0.6):
        path.write_bytes(data[: int(len(data) * part)])
        message = refusal(path)
        assert "truncated" in message or "not a video file that can be read" in message
        assert "copy or download it again" in message or "check it or convert it" in message


def test_frames_that_cannot_be_decoded(tmp_path: Path, write_video: Any) -> None:
    path = write_video(tmp_path / "a.mp4", 50, codec="libx264", g="10")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        packets = [(packet.pos, packet.size) for packet in file.demux() if packet.size]
    for position, size in packets[5:]:
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    assert video_item_length({"path": path}, WHOLE) == 50
    message = refusal(path, decoding=True)
    assert "truncated" in message or "damaged" in message


def test_frames_that_change_their_size(tmp_path: Path, write_video: Any) -> None:
    small = write_video(tmp_path / "s.avi", 5, codec="mjpeg", size=(32, 32), strict="unofficial")
    large = write_video(tmp_path / "l.avi", 5, codec="mjpeg", size=(64, 64), strict="unofficial")
    with av.open(str(tmp_path / "both.mkv"), "w") as file, av.open(str(small)) as first, av.open(str(large)) as second:
        stream = file.add_stream_from_template(first.streams.video[0])
        for number, source in enumerate((first, second)):
            for packet in source.demux():
                if packet.dts is not None:
                    packet.pts = packet.dts = packet.dts + 5 * number
                    packet.stream = stream
                    file.mux(packet)
    assert "size of its frames changes" in refusal(tmp_path / "both.mkv", decoding=True)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"type": "video"}, "either a `path` or an `array`"),
        ({"path": 3}, "to be a file's path, got 3"),
        ({"path": "~nobody-of-that-name/a.mp4"}, "no such user"),
        ({"array": np.zeros((2, 8, 8), np.uint8)}, "`sampling_rate` in frames a second, got None"),
        ({"array": np.zeros((2, 8, 8)), "sampling_rate": 25}, "uint8 frames, got float64"),
        ({"array": np.zeros((0, 8, 8), np.uint8), "sampling_rate": 25}, "got (0, 8, 8)"),
        ({"array": np.zeros((2, 8, 8, 4), np.uint8), "sampling_rate": 25}, "got (2, 8, 8, 4)"),
        (
            {"array": np.zeros((1, 8, 8), np.uint8), "sampling_rate": 1e9},
            "1 frames at 1000000000.0 a second lasts no time",
        ),
    ],
)
def test_items_that_name_no_video(item: dict[str, Any], expected: str) -> None:
    with pytest.raises(MediaError) as caught:
        load_video_item(item, WHOLE)
    assert expected in str(caught.value)


def test_a_face_without_what_finds_it(tmp_path: Path, write_video: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 3, size=(120, 160))
    options = VideoOptions(size=(88, 88))
    monkeypatch.setattr(face_finder, "find_spec", lambda name: None)
    message = refusal(path, options)
    assert "not a mouth crop" in message
    assert "pip install 'speechlmm-core[mediapipe]'" in message
    assert "crop the mouths first (square frames, 96x96 pixels)" in message
    monkeypatch.setattr(face_finder, "find_spec", lambda name: object())
    monkeypatch.setenv("PRETRAINED_COMPONENTS", str(tmp_path))
    message = refusal(path, options)
    assert "put face_landmarker.task" in message
    assert "below $PRETRAINED_COMPONENTS" in message
    (tmp_path / "face_landmarker.task").write_bytes(b"x")
    assert video_item_length({"path": path}, options) == 3
