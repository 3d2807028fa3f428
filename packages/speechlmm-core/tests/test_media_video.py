"""Which frames are loaded, and what becomes of them."""

import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.media import decord_frames, video_source
from speechlmm_core.media.decord_frames import DecordUnfitError
from speechlmm_core.media.source import MediaSource
from speechlmm_core.media.video import VideoOptions, load_video_item, video_item_length
from speechlmm_core.media.video_lengths import frames_on_screen, num_output_frames, sample_times

WHOLE = VideoOptions(crop="none")
BACKENDS = ["pyav", *(["decord"] if find_spec("decord") else [])]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pyav":
        monkeypatch.setattr(decord_frames, "find_spec", lambda name: None)
    return request.param


@pytest.fixture
def by_decord(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames decord gave, file by file."""
    counts: list[int] = []
    real = video_source.decord_frames

    def counted(*args: Any) -> Any:
        counts.append(0)
        for frame in real(*args):
            counts[-1] += 1
            yield frame

    monkeypatch.setattr(video_source, "decord_frames", counted)
    return counts


def on_screen(times_s: list[float], start_s: float, duration_s: float, rate: int = 25) -> list[int]:
    """The definition, word for word: the frame that is on screen 0.3 of a frame's time after each frame's begin."""
    found = []
    while not found or (len(found) + 0.3) / rate < duration_s - 1e-9:
        look = start_s + (len(found) + 0.3) / rate
        found.append(max([i for i, time in enumerate(times_s) if time <= look + 1e-9], default=0))
    return found


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.mov", "mpeg4"), ("a.ts", "libx264")],
)
@pytest.mark.parametrize("rate", [25, 24, 30, 50])
def test_any_rate_becomes_the_rate_asked_for(
    name: str, codec: str, rate: int, tmp_path: Path, write_video: Any, frame_numbers: Any, backend: str
) -> None:
    path = write_video(tmp_path / name, 61, rate=rate, codec=codec, bf="2", g="12")
    item = {"type": "video", "path": str(path)}
    medium = load_video_item(item, WHOLE)
    assert medium.sampling_rate == 25
    assert medium.values.dtype == torch.uint8
    expected = on_screen([i / rate for i in range(61)], 0.0, 61 / rate)
    assert frame_numbers(medium.values) == expected
    assert video_item_length(item, WHOLE) == medium.num_samples == len(expected)
    if rate == 25:
        assert expected == list(range(61)), "at the file's own rate nothing changes"
    if rate == 50:
        assert expected == list(range(0, 61, 2)), "at half the rate it is every second frame"


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_a_variable_frame_rate_keeps_its_time(
    name: str, tmp_path: Path, write_video: Any, frame_numbers: Any, backend: str
) -> None:
    times = np.cumsum(np.random.default_rng(0).integers(5, 300, 60))
    path = write_video(tmp_path / name, 60, times_ms=times, g="10", bf="2")
    medium = load_video_item({"path": path}, WHOLE)
    seconds = [(time - times[0]) / 1000 for time in times]
    expected = on_screen(seconds, 0.0, medium.num_samples / 25 - 0.02)
    assert frame_numbers(medium.values) == expected
    assert expected[-1] == 59
    assert video_item_length({"path": path}, WHOLE) == medium.num_samples
    assert medium.duration_s == pytest.approx(seconds[-1], abs=0.35), "the last frame's own time is a codec's guess"


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"bf": "2", "g": "12"}),
        ("o.mp4", "libx264", {"x264-params": "open-gop=1:keyint=10:bframes=3:scenecut=0"}),
        ("a.mkv", "mpeg4", {"bf": "2", "g": "12"}),
        ("a.avi", "mpeg4", {"bf": "2", "g": "12"}),
        ("a.ts", "libx264", {"bf": "2", "g": "12"}),
    ],
)
def test_a_segment_is_a_part_of_the_whole(
    name: str,
    codec: str,
    options: dict[str, str],
    tmp_path: Path,
    write_video: Any,
    frame_numbers: Any,
    backend: str,
) -> None:
    path = write_video(tmp_path / name, 61, codec=codec, **options)
    for start, end in ((0.0, 0.5), (0.8, 1.2), (1.0, None), (1.61, 2.42), (2.2, 2.44), (0.5, 0.51)):
        item = {"path": path, "start": start, "end": end}
        expected = on_screen([i / 25 for i in range(61)], start, (end or 2.44) - start)
        assert frame_numbers(load_video_item(item, WHOLE).values) == expected
        assert video_item_length(item, WHOLE) == len(expected)


@given(st.integers(1, 10**6), st.integers(1, 60))
def test_the_number_of_frames_is_what_is_looked_at_before_the_end(duration: int, rate: int) -> None:
    count = num_output_frames(duration, rate)
    naive = 0
    while (10 * naive + 3) * 1_000_000 < 10 * rate * duration:
        naive += 1
    assert count == max(1, naive)
    looks = sample_times(0, count, rate)
    assert (np.diff(looks) >= 1_000_000 // rate).all()


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=20, unique=True), st.lists(st.integers(0, 1200), max_size=20)
)
def test_a_frame_is_on_screen_until_the_next_one(times: list[int], looks: list[int]) -> None:
    times, looks = sorted(times), sorted(looks)
    found = frames_on_screen(np.array(times, np.int64), np.array(looks, np.int64))
    assert found.tolist() == [max(0, sum(time <= look for time in times) - 1) for look in looks]


def test_decord_and_pyav_give_the_same_frames(
    tmp_path: Path, write_video: Any, by_decord: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    frames = [np.roll(rng.integers(0, 256, (72, 98, 3), np.uint8), 3 * i, axis=1) for i in range(30)]
    times = np.cumsum(rng.integers(10, 90, 30))
    paths = [
        write_video(tmp_path / "a.mp4", frames, bf="3", g="10"),
        write_video(tmp_path / "b.mkv", frames, times_ms=times),
        write_video(tmp_path / "c.mp4", frames, sound_s=1.5),
        write_video(tmp_path / "d.mp4", frames, rotation=90),
    ]
    options = VideoOptions(crop="none", grey=False)
    loaded = [load_video_item({"path": path}, options).values for path in paths]
    lengths = [len(values) for values in loaded[:3]] if "decord" in BACKENDS else []
    assert by_decord == lengths, "a turned video is left to PyAV"
    assert loaded[0].shape == (30, 72, 98, 3)
    assert loaded[3].shape == (30, 98, 72, 3)
    monkeypatch.setattr(decord_frames, "find_spec", lambda name: None)
    for path, values in zip(paths, loaded, strict=True):
        assert torch.equal(load_video_item({"path": path}, options).values, values)
    assert by_decord == lengths, "not asked a second time"


def test_what_was_cut_off_without_coding_anew_does_not_count(
    tmp_path: Path, write_video: Any, frame_numbers: Any, backend: str
) -> None:
    path = write_video(tmp_path / "a.mp4", 60, bf="2", g="12")
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(path)) as source, av.open(str(tmp_path / "cut.mp4"), "w", options=options) as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.dts is not None:
                step = packet.duration
                packet.pts, packet.dts = packet.pts - 10 * step, packet.dts - 10 * step
                packet.stream = stream
                file.mux(packet)
    item = {"path": tmp_path / "cut.mp4"}
    assert frame_numbers(load_video_item(item, WHOLE).values) == list(range(10, 60))
    assert video_item_length(item, WHOLE) == 50
    assert frame_numbers(load_video_item({**item, "start": 1.0}, WHOLE).values) == list(range(35, 60))


def test_frames_that_are_never_shown_do_not_count(tmp_path: Path, write_video: Any, frame_numbers: Any) -> None:
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "200k", "deadline": "realtime"}
    path = write_video(tmp_path / "a.webm", 40, codec="libvpx", size=(64, 64), **options)
    assert frame_numbers(load_video_item({"path": path}, WHOLE).values) == list(range(40))
    assert video_item_length({"path": path}, WHOLE) == 40


def test_pyav_goes_on_where_decord_fails(
    tmp_path: Path, write_video: Any, frame_numbers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(file: Path, info: Any, looks: Any) -> Any:
        yield from list(real(MediaSource(file), info, looks))[:7]
        raise DecordUnfitError("gave up")

    real = video_source.pyav_frames
    monkeypatch.setattr(video_source, "decord_fits", lambda info, looks: True)
    monkeypatch.setattr(video_source, "decord_frames", failing)
    path = write_video(tmp_path / "a.mp4", 20)
    assert frame_numbers(load_video_item({"path": path}, WHOLE).values) == list(range(20))


def test_decord_is_kept_from_what_it_gets_wrong(tmp_path: Path, write_video: Any, by_decord: list[int]) -> None:
    write_video(tmp_path / "a.avi", 40, codec="mpeg4", bf="2")
    write_video(tmp_path / "a.ts", 40)
    write_video(tmp_path / "a.mp4", 40)
    for item in ({"path": tmp_path / "a.avi"}, {"path": tmp_path / "a.ts"}, {"path": tmp_path / "a.mp4", "start": 1.0}):
        load_video_item(item, WHOLE)
    assert not by_decord


def test_a_turned_video_is_loaded_as_it_is_shown(tmp_path: Path, write_video: Any, backend: str) -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48] = 255  # white at the top left as stored
    options = VideoOptions(crop="none")
    for rotation, corner in ((90, (1, 0)), (180, (1, 1)), (-90, (0, 1))):
        path = write_video(tmp_path / f"{rotation}.mp4", [picture] * 3, rotation=rotation)
        (values, *_) = load_video_item({"path": path}, options).values.float()
        assert values.shape == ((64, 96) if rotation == 180 else (96, 64))
        halves = values.reshape(2, values.shape[0] // 2, 2, -1).mean(dim=(1, 3))  # (2, 2)
        assert tuple(divmod(int(halves.argmax()), 2)) == corner


def test_grey_is_luma() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 9, 7, 3), np.uint8)
    item = {"type": "video", "array": frames, "sampling_rate": 25}
    grey = load_video_item(item, WHOLE).values
    assert grey.shape == (4, 9, 7)
    expected = 0.299 * frames[..., 0] + 0.587 * frames[..., 1] + 0.114 * frames[..., 2]
    assert np.abs(grey.numpy() - expected).max() <= 0.51
    assert torch.equal(load_video_item(item, VideoOptions(crop="none", grey=False)).values, torch.from_numpy(frames))


def test_the_middle_of_a_mouth_crop_is_taken() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 96, 96), np.uint8)
    item = {"array": frames, "sampling_rate": 25}
    for crop in ("auto", "centre"):
        values = load_video_item(item, VideoOptions(size=(88, 88), crop=crop)).values
        np.testing.assert_array_equal(values, frames[:, 4:92, 4:92])
    np.testing.assert_array_equal(load_video_item(item, VideoOptions()).values, frames)
    wide = np.random.default_rng(0).integers(0, 256, (2, 200, 101), np.uint8)
    values = load_video_item({"array": wide, "sampling_rate": 25}, VideoOptions(size=(88, 88), crop="centre")).values
    np.testing.assert_array_equal(values, wide[:, 56:144, 6:94])


def test_frames_are_scaled_bilinearly() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 60), np.uint8)
    item = {"array": torch.from_numpy(frames), "sampling_rate": 25}
    for crop, size in (("none", (20, 31)), ("none", (88, 70)), ("centre", (80, 80))):
        values = load_video_item(item, VideoOptions(size=size, crop=crop)).values
        assert values.shape == (3, *size)
        to = size if crop == "none" else (80, 120)
        scaled = torch.nn.functional.interpolate(
            torch.from_numpy(frames)[:, None].float(), to, mode="bilinear", antialias=True
        )[:, 0]
        expected = scaled if crop == "none" else scaled[:, :, 20:100]
        assert (values.float() - expected).abs().max() <= 1.5


def test_frames_in_memory_are_converted_too() -> None:
    frames = np.arange(30, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    item = {"array": frames, "sampling_rate": 30, "start": 0.2, "end": 0.8}
    values = load_video_item(item, WHOLE).values
    assert values[:, 0, 0].tolist() == on_screen([i / 30 for i in range(30)], 0.2, 0.6)
    assert video_item_length(item, WHOLE) == len(values) == 15


def test_memory_is_that_of_the_result(tmp_path: Path, write_video: Any, backend: str) -> None:
    path = write_video(tmp_path / "large.mp4", 120, size=(480, 640), preset="ultrafast")
    load_video_item({"path": path, "end": 0.1}, WHOLE)
    tracemalloc.start()
    medium = load_video_item({"path": path}, VideoOptions(crop="none", size=(24, 32)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert medium.values.shape == (120, 24, 32)
    assert peak < 60e6, "all frames would be 110 MB"
