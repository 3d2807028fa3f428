"""Lossy and container formats: what the header says, what is decoded, and segments."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from speechlmm_core.errors import MediaError
from speechlmm_core.media.audio import audio_info, load_audio, resampled_length

SECONDS = 12
# name, library that writes it, rate
FORMATS = {
    "a.mp3": 44100,
    "vbr.mp3": 24000,
    "a.ogg": 44100,
    "a.opus": 48000,
    "a.m4a": 44100,
    "a.aac": 44100,
    "a.webm": 48000,
    "a.mkv": 44100,
    "video.mp4": 48000,
}


def chirp(rate: int) -> np.ndarray:
    time = np.arange(rate * SECONDS) / rate
    return (0.4 * np.sin(2 * np.pi * (200 * time + 60 * time**2))).astype(np.float32)


def write_by_pyav(path: Path, values: np.ndarray, rate: int) -> None:
    codec = "libopus" if path.suffix in {".webm", ".opus"} else "aac"
    container_format = {".m4a": "ipod", ".aac": "adts", ".mkv": "matroska"}.get(path.suffix)
    with av.open(str(path), "w", format=container_format) as container:
        video = container.add_stream("mpeg4", rate=5) if path.stem == "video" else None
        if video is not None:
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
        audio = container.add_stream(codec, rate=rate, layout="mono")
        audio.bit_rate = 96_000
        if video is not None:
            for index in range(5 * (SECONDS + 1)):  # a second longer than the sound
                picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), index, np.uint8), format="rgb24")
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
        for start in range(0, len(values), 1000):
            frame = av.AudioFrame.from_ndarray(values[None, start : start + 1000], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lossy")
    for name, rate in FORMATS.items():
        path = folder / name
        if path.suffix in {".mp3", ".ogg"}:
            mode = {"bitrate_mode": "VARIABLE", "compression_level": 0.5} if path.stem == "vbr" else {}
            soundfile.write(path, chirp(rate), rate, **mode)
        elif path.suffix == ".opus":
            soundfile.write(path, chirp(rate), rate, format="OGG", subtype="OPUS")
        else:
            write_by_pyav(path, chirp(rate), rate)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_the_whole_file_is_as_long_as_its_header_says(folder: Path, name: str):
    info = audio_info(folder / name)
    assert info.sampling_rate == FORMATS[name]
    assert info.num_channels == 1
    assert info.duration_s == pytest.approx(SECONDS, abs=0.06)  # padding and delay of the codec
    if Path(name).suffix in {".mp3", ".ogg", ".opus"}:
        assert info.num_samples == SECONDS * FORMATS[name]
    for rate in (16000, FORMATS[name]):
        assert load_audio(folder / name, sampling_rate=rate).num_samples == resampled_length(
            info.num_samples, info.sampling_rate, rate
        )


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_decoded_is_what_was_encoded(folder: Path, name: str):
    rate = FORMATS[name]
    loaded = load_audio(folder / name, sampling_rate=rate).values.numpy()
    original = chirp(rate)
    middle = original[5 * rate : 5 * rate + 8192]
    # Raw AAC and Matroska do not say how much the encoder added at the start.
    lags = range(0, 2200) if Path(name).suffix in {".aac", ".mkv"} else range(-60, 60)
    errors = {lag: np.abs(loaded[5 * rate + lag : 5 * rate + lag + 8192] - middle).max() for lag in lags}
    assert min(errors.values()) < 0.05
    if Path(name).suffix in {".mp3", ".ogg", ".m4a", ".mp4"}:
        assert min(errors, key=lambda lag: errors[lag]) == 0


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("start", "end"), [(0.3, 0.9), (3.2, 3.7), (5.4321, 7.1), (11.0, None)])
def test_a_segment_equals_the_slice_of_the_whole(folder: Path, name: str, start: float, end: float | None):
    rate = FORMATS[name]
    whole = load_audio(folder / name, sampling_rate=rate).values
    part = load_audio(folder / name, sampling_rate=rate, start=start, end=end).values
    last = len(whole) if end is None else round(end * rate)
    torch.testing.assert_close(part, whole[round(start * rate) : last], atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["a.ogg", "vbr.mp3", "a.opus"])
def test_many_segments_are_exact_to_the_sample(folder: Path, name: str):
    rate = FORMATS[name]
    whole = load_audio(folder / name, sampling_rate=rate).values
    for start in np.random.default_rng(0).uniform(0, 11.5, 40):
        part = load_audio(folder / name, sampling_rate=rate, start=float(start), end=float(start) + 0.4).values
        first = round(start * rate)
        torch.testing.assert_close(part, whole[first : first + len(part)], atol=2e-3, rtol=0)


@pytest.mark.parametrize("bitrate_mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_without_a_length_header_is_read_whole(tmp_path: Path, bitrate_mode: str):
    rate = 44100
    values = chirp(rate) * (np.arange(rate * SECONDS) > rate * SECONDS / 2)  # half silence: rates differ widely
    soundfile.write(tmp_path / "a.mp3", values, rate, bitrate_mode=bitrate_mode, compression_level=0.5)
    data = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "b.mp3").write_bytes(data[data.find(data[:2], 4) :])  # without the first frame, which holds the length
    info = audio_info(tmp_path / "b.mp3")
    assert info.duration_s == pytest.approx(SECONDS, abs=0.1)
    assert load_audio(tmp_path / "b.mp3", sampling_rate=rate).num_samples == info.num_samples


def test_a_flac_without_a_length_header_is_read_whole(tmp_path: Path):
    values = np.random.default_rng(0).integers(-9999, 9999, 100_000).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", values, 16000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0  # the 36 bits of STREAMINFO's number of samples
    data[22:26] = bytes(4)
    (tmp_path / "b.flac").write_bytes(data)
    assert audio_info(tmp_path / "b.flac").num_samples == 100_000
    loaded = load_audio(tmp_path / "b.flac", sampling_rate=16000).values
    assert torch.equal(loaded, load_audio(tmp_path / "a.flac", sampling_rate=16000).values)


@pytest.mark.parametrize("name", ["a.webm", "a.mkv", "a.mp3", "a.ogg", "a.opus"])
def test_a_file_cut_in_the_middle_is_refused(folder: Path, tmp_path: Path, name: str):
    data = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"truncated|damaged"):
        load_audio(tmp_path / name, sampling_rate=16000)


def test_an_m4a_whose_index_is_cut_off_is_refused(folder: Path, tmp_path: Path):
    data = (folder / "a.m4a").read_bytes()
    (tmp_path / "a.m4a").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"a\.m4a: not an audio file that can be read, or a damaged one"):
        load_audio(tmp_path / "a.m4a", sampling_rate=16000)


def test_a_playlist_opens_nothing_else(folder: Path, tmp_path: Path):
    (tmp_path / "list.m4a").write_text(f"#EXTM3U\n#EXTINF:10,\n{folder / 'a.aac'}\n")
    with pytest.raises(MediaError, match="not an audio file"):
        audio_info(tmp_path / "list.m4a")
