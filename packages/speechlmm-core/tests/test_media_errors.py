"""Every way in which audio can be unusable gives one clear line."""

import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechlmm_core.errors import MediaError
from speechlmm_core.media.audio import audio_info, audio_item_length, load_audio, load_audio_item


def refusal(path: Path | str, **segment: float) -> str:
    """The error's message, which is one line and names the file."""
    with pytest.raises(MediaError) as caught:
        load_audio(path, sampling_rate=16000, **segment)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def write(path: Path, seconds: float = 4.0, rate: int = 16000) -> Path:
    values = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate))
    soundfile.write(path, values, rate)
    return path


def header_only(path: Path, *, data_bytes: int, rate: int = 8000) -> Path:
    """A WAV file of 8-bit silence that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(
            struct.pack(
                "<4sI8sIHHIIHH4sI",
                b"RIFF",
                36 + data_bytes,
                b"WAVEfmt ",
                16,
                1,
                1,
                rate,
                rate,
                1,
                8,
                b"data",
                data_bytes,
            )
        )
        file.truncate(44 + data_bytes)
    return path


def test_missing_file(tmp_path: Path):
    assert "no such file" in refusal(tmp_path / "nowhere.wav")
    with pytest.raises(MediaError, match="no such file"):
        audio_info(tmp_path / "nowhere.wav")


def test_folder(tmp_path: Path):
    assert "this is a folder" in refusal(tmp_path)


def test_pipe(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.wav")
    assert "not a regular file" in refusal(tmp_path / "pipe.wav")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "a.wav")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read: Permission denied" in refusal(path)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "m4a"])
def test_empty_file(tmp_path: Path, suffix: str):
    (tmp_path / f"a.{suffix}").touch()
    assert "empty (0 bytes)" in refusal(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "m4a", "webm", "txt"])
@pytest.mark.parametrize("content", [b"This is text, not audio.\n" * 200, np.random.default_rng(0).bytes(20_000), b"x"])
def test_what_is_not_audio(tmp_path: Path, suffix: str, content: bytes):
    (tmp_path / f"a.{suffix}").write_bytes(content)
    assert "not an audio file" in refusal(tmp_path / f"a.{suffix}")


def test_a_picture_holds_no_audio(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert "not an audio file" in refusal(tmp_path / "a.wav")


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_truncated_file(tmp_path: Path, suffix: str, keep: float):
    data = write(tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: int(len(data) * keep)])
    assert "truncated" in refusal(path)
    assert "truncated" in refusal(path, start=3.5, end=4.0)


@pytest.mark.parametrize("size", [4, 11, 20, 40, 43])
def test_a_wav_file_cut_within_its_header(tmp_path: Path, size: int):
    data = write(tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[:size])
    refusal(tmp_path / "cut.wav")


def test_a_truncated_wav_file_is_known_from_its_header(tmp_path: Path):
    data = write(tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[:-2000])
    with pytest.raises(MediaError, match="promises 128044 bytes and the file has 126044"):
        audio_info(tmp_path / "cut.wav")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_file_from_a_pipe_reaches_to_its_end(tmp_path: Path, size: int):
    data = bytearray(write(tmp_path / "a.wav").read_bytes())
    data[40:44] = struct.pack("<I", size)
    data[4:8] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(data)
    assert load_audio(tmp_path / "a.wav", sampling_rate=16000).num_samples == 64000


def test_a_truncated_rf64_file(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 16000, format="RF64")
    assert load_audio(tmp_path / "a.wav", sampling_rate=16000).num_samples == 8000
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "b.wav").write_bytes(data[:-4000])
    assert "truncated" in refusal(tmp_path / "b.wav")


@pytest.mark.parametrize("suffix", ["wav", "aiff"])
def test_a_file_without_samples(tmp_path: Path, suffix: str):
    soundfile.write(tmp_path / f"a.{suffix}", np.zeros(0), 16000)
    assert "no audio samples" in refusal(tmp_path / f"a.{suffix}")


def test_ten_hours_are_refused_from_the_header(tmp_path: Path):
    path = header_only(tmp_path / "long.wav", data_bytes=10 * 3600 * 8000)
    assert "600.0 minutes of audio, more than the limit of 120.0 minutes" in refusal(path)
    assert audio_info(path).duration_s == 36000
    assert load_audio(path, sampling_rate=8000, start=30_000, end=30_001).num_samples == 8000
    assert "limit" in refusal(path, start=0, end=7201)
    assert "1.0 minutes of audio, more than the limit of 0.5" in refusal(path, start=0, end=60, max_duration_s=30)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_samples_that_are_no_numbers(tmp_path: Path, value: float):
    values = np.zeros(100_000, np.float32)
    values[80_000] = value
    soundfile.write(tmp_path / "a.wav", values, 16000, subtype="FLOAT")
    assert "the sample at 5.000 s is not a finite number" in refusal(tmp_path / "a.wav")
    assert load_audio(tmp_path / "a.wav", sampling_rate=16000, end=4.9).num_samples == 78_400
    with pytest.raises(MediaError, match=r"in-memory audio: the sample at 5\.000 s is not a finite number"):
        load_audio_item({"type": "audio", "array": values, "sampling_rate": 16000}, 8000)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (2.0, 1.0, "must lie before its end"),
        (1.0, 1.0, "must lie before its end"),
        (4.0, None, "only 4.000 s long"),
        (9.0, None, "starts at 9.0 s, but the audio is only 4.000 s long"),
        (1.0, 4.1, "ends at 4.1 s, but the audio is only 4.000 s long"),
        (-1.0, None, "expected the segment's start in seconds (0 or more), got -1.0"),
        (0.0, math.nan, "expected the segment's end in seconds (0 or more), got nan"),
        ("1", None, "got '1'"),
        (True, None, "got True"),
        (1.0, 1.00001, "holds no sample at 16000 Hz"),
    ],
)
def test_segments_that_do_not_exist(tmp_path: Path, start: Any, end: Any, message: str):
    path = write(tmp_path / "a.wav")
    assert message in refusal(path, start=start, end=end)
    with pytest.raises(MediaError):
        audio_item_length({"type": "audio", "path": str(path), "start": start, "end": end}, 16000)


def test_a_damaged_flac_file(tmp_path: Path):
    data = bytearray(write(tmp_path / "a.flac").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 5000] = bytes(5000)
    (tmp_path / "a.flac").write_bytes(data)
    assert "truncated or damaged" in refusal(tmp_path / "a.flac")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({}, "either a `path` or an `array`"),
        ({"path": "a.wav", "array": [0.0]}, "either a `path` or an `array`"),
        ({"path": 7}, "to be a file's path, got 7"),
        ({"path": ""}, "to be a file's path, got ''"),
        ({"path": "~nobody-of-this-name/a.wav"}, "no such user"),
        ({"array": np.zeros(10)}, "whole `sampling_rate` in Hz, got None"),
        ({"array": np.zeros(10), "sampling_rate": -1}, "got -1"),
        ({"array": np.zeros(10), "sampling_rate": 16000.5}, "got 16000.5"),
        ({"array": np.zeros(0), "sampling_rate": 16000}, "got \\(0,\\)"),
        ({"array": np.zeros((10, 2)), "sampling_rate": 16000}, "got \\(10, 2\\)"),
        ({"array": np.zeros((1, 1, 9)), "sampling_rate": 16000}, "got \\(1, 1, 9\\)"),
        ({"array": np.zeros(9, bool), "sampling_rate": 16000}, "got bool"),
        ({"array": torch.zeros(9, dtype=torch.complex64), "sampling_rate": 16000}, "got complex64"),
        ({"array": np.zeros(7201 * 10), "sampling_rate": 10}, "more than the limit"),
    ],
)
def test_items_that_are_wrong(item: dict[str, Any], message: str):
    with pytest.raises(MediaError, match=message):
        load_audio_item({"type": "audio", **item}, 16000)
