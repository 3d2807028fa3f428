"""Damaged audio is loaded where the damage is harmless, and else is one error line: no crash, hang or gigabytes."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlmm_core.errors import MediaError
from speechlmm_core.media.audio import audio_info, load_audio

SCRIPT = Path(__file__).with_name("damaged_audio.py")
FILES = 1000


def test_a_thousand_damaged_files(tmp_path: Path) -> None:
    """Each within 5 s of processor time and a gigabyte of address space; the process dies where one goes beyond."""
    command = [sys.executable, "-W", "error", str(SCRIPT), str(tmp_path), "0", str(FILES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{lines[-1:]} {done.stderr[-2000:]}"
    assert not done.stderr, "the libraries print nothing"
    results = [line for line in lines if "seconds" in line]
    assert [line for line in results if "fault" in line] == []
    assert len(results) == FILES
    loaded = sum(line["outcome"] == "loaded" for line in results)
    assert 0.15 < loaded / FILES < 0.6  # the damage is neither all harmless nor all fatal


def refusal(path: Path) -> str:
    with pytest.raises(MediaError) as caught:
        load_audio(path, sampling_rate=16_000)
    with pytest.raises(MediaError):
        load_audio(path, sampling_rate=16_000, start=0.1, end=0.2)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def wav(path: Path, *, rate: int = 8000, channels: int = 1, tag: int = 1, data: bytes = bytes(64_000)) -> Path:
    width = 2 * channels
    header = struct.pack("<HHIIHH", tag, channels, rate, (rate * width) & 0xFFFFFFFF, width & 0xFFFF, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + header + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


@pytest.mark.parametrize("rate", [0, 1, 999, 1_000_001, 4_000_000_000])
def test_sampling_rates_that_no_audio_has(tmp_path: Path, rate: int) -> None:
    message = refusal(wav(tmp_path / "a.wav", rate=rate))
    assert "samples a second" in message or "not an audio file" in message


@pytest.mark.parametrize("channels", [0, 300, 1024, 65_535])
def test_channels_that_no_audio_has(tmp_path: Path, channels: int) -> None:
    message = refusal(wav(tmp_path / "a.wav", channels=channels, data=bytes(4 * 65_535)))
    assert "channels" in message or "not an audio file" in message


def test_many_channels_are_read_in_smaller_blocks(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-0.5, 0.5, (20_000, 200)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", values, 16_000, subtype="FLOAT")
    loaded = load_audio(tmp_path / "a.wav", sampling_rate=16_000).values.numpy()
    np.testing.assert_allclose(loaded, values.mean(axis=1), atol=1e-6)


def test_an_unknown_codec(tmp_path: Path) -> None:
    assert "not an audio file that can be read" in refusal(wav(tmp_path / "a.wav", tag=0x7ABC))


def sparse(path: Path, head: bytes, num_bytes: int) -> Path:
    path.write_bytes(head)
    os.truncate(path, num_bytes)
    return path


def test_gigabytes_of_zeros_after_a_header(tmp_path: Path) -> None:
    whole = wav(tmp_path / "whole.wav").read_bytes()
    assert "without sample data" in refusal(sparse(tmp_path / "a.wav", whole[:36], 4_000_000_000))
    assert "without sample data" in refusal(sparse(tmp_path / "b.wav", b"RF64\xff\xff\xff\xffWAVE", 4_000_000_000))


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_compressed_audio_with_a_part_that_was_never_written(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 160_000)
    soundfile.write(tmp_path / f"whole.{suffix}", noise, 16_000)
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    assert "damaged" in refusal(sparse(tmp_path / f"a.{suffix}", data[: len(data) // 2], 2_000_000_000))


def test_tags_without_end(tmp_path: Path) -> None:
    tag = b"ID3\x04\0\0\0\0\0\0"
    (tmp_path / "a.mp3").write_bytes(tag * 200_000)
    refusal(tmp_path / "a.mp3")


@pytest.mark.parametrize("value", [1e10, -1e30, 3e38])
def test_samples_beyond_all_scales(tmp_path: Path, value: float) -> None:
    values = np.zeros((50_000, 2), np.float32)
    values[30_000] = value
    soundfile.write(tmp_path / "a.wav", values, 8000, subtype="FLOAT")
    with pytest.raises(MediaError, match=r"the sample at 3\.750 s is .*(full scale is 1|not a finite number)"):
        load_audio(tmp_path / "a.wav", sampling_rate=16_000)


def test_a_flac_that_claims_hours_takes_no_memory_for_them(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros(16_000), 16_000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0  # the 36 bits of STREAMINFO's number of samples
    data[22:26] = struct.pack(">I", 100 * 60 * 16_000)
    (tmp_path / "a.flac").write_bytes(data)
    assert audio_info(tmp_path / "a.flac").duration_s == 6000
    before = resident()
    with pytest.raises(MediaError, match="truncated"):
        load_audio(tmp_path / "a.flac", sampling_rate=16_000)
    assert resident() - before < 50e6


def resident() -> int:
    """Peak of the memory that this process has held, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
