"""Whole files and segments in lossless formats: values, lengths, channels, resampling, items."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.media.audio import audio_info, audio_item_length, load_audio, load_audio_item, resampled_length

RATES = [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000]


def tone(frequency: float, rate: int, seconds: float, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def noise(num_samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (num_samples, channels)).astype(np.float32)


def strength(values: np.ndarray, frequency: float, rate: int) -> float:
    """Amplitude of one frequency, by correlation with it."""
    turn = np.exp(-2j * np.pi * frequency * np.arange(len(values)) / rate)
    return 2 * abs(np.dot(values, turn)) / len(values)


@pytest.mark.parametrize(
    ("suffix", "subtype"), [("wav", "FLOAT"), ("wav", "PCM_16"), ("flac", "PCM_24"), ("aiff", "PCM_16")]
)
def test_values_equal_those_that_were_written(tmp_path: Path, suffix: str, subtype: str):
    path = tmp_path / f"a b ü.{suffix}"
    values = noise(5000)
    soundfile.write(path, values, 16000, subtype=subtype)
    medium = load_audio(path, sampling_rate=16000)
    assert medium.values.dtype == torch.float32
    assert medium.values.shape == (5000,)
    step = {"FLOAT": 0.0, "PCM_16": 2**-15, "PCM_24": 2**-23}[subtype]
    assert np.abs(medium.values.numpy() - values[:, 0]).max() <= step
    assert medium.duration_s == 5000 / 16000


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_channels_are_averaged(tmp_path: Path, channels: int):
    values = noise(4000, channels)
    soundfile.write(tmp_path / "a.wav", values, 8000, subtype="FLOAT")
    info = audio_info(tmp_path / "a.wav")
    assert (info.num_samples, info.sampling_rate, info.num_channels) == (4000, 8000, channels)
    assert info.duration_s == 0.5
    loaded = load_audio(tmp_path / "a.wav", sampling_rate=8000).values.numpy()
    np.testing.assert_allclose(loaded, values.sum(axis=1) / channels, atol=1e-6)


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_keeps_frequency_and_amplitude(tmp_path: Path, rate: int):
    soundfile.write(tmp_path / "a.wav", tone(1000, rate, 1.0), rate, subtype="FLOAT")
    loaded = load_audio(tmp_path / "a.wav", sampling_rate=16000).values.numpy()
    middle = loaded[4000:12000]  # away from the borders, a whole number of periods
    np.testing.assert_allclose(middle, tone(1000, 16000, 1.0)[4000:12000], atol=1e-3)
    assert strength(middle, 1000, 16000) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("rate", "frequency"), [(44100, 10_000), (48000, 9000), (48000, 23_000), (96000, 12_345)])
def test_what_lies_above_nyquist_is_suppressed_by_60_db(tmp_path: Path, rate: int, frequency: int):
    soundfile.write(tmp_path / "a.wav", tone(frequency, rate, 1.0), rate, subtype="FLOAT")
    loaded = load_audio(tmp_path / "a.wav", sampling_rate=16000).values.numpy()
    middle = loaded[2000:-2000]
    assert np.sqrt(np.mean(middle**2)) < 0.5 / math.sqrt(2) * 10 ** (-60 / 20)


@given(st.integers(0, 10**9), st.sampled_from([*RATES, 1, 7, 44056]), st.sampled_from([*RATES, 1, 13]))
def test_resampled_length_counts_the_output_times_before_the_end(num_samples: int, rate: int, to_rate: int):
    length = resampled_length(num_samples, rate, to_rate)
    # Output sample k stands at k / to_rate seconds: k * rate < num_samples * to_rate.
    assert length == 0 or (length - 1) * rate < num_samples * to_rate
    assert length * rate >= num_samples * to_rate


@given(st.integers(1, 5000), st.integers(4000, 100_000), st.sampled_from([8000, 16000, 24000, 44100]))
def test_the_length_loaded_is_the_length_computed(
    tmp_path_factory: pytest.TempPathFactory, num: int, rate: int, to: int
):
    path = tmp_path_factory.getbasetemp() / "length.wav"
    soundfile.write(path, noise(num), rate)
    info = audio_info(path)
    expected = resampled_length(info.num_samples, info.sampling_rate, to)
    assert load_audio(path, sampling_rate=to).num_samples == expected
    assert audio_item_length({"path": str(path)}, to) == expected


def test_resampled_length_takes_arrays():
    lengths = np.array([1, 44100, 44101])
    assert resampled_length(lengths, 44100, 16000).tolist() == [1, 16000, 16001]
    assert resampled_length(torch.tensor(lengths), 44100, 16000).tolist() == [1, 16000, 16001]


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize(
    ("start", "end"), [(None, 1.0), (0.0, 0.5), (3.2, 9.7), (8.123, None), (9.999, 10.0), (9.0, 10.04)]
)
def test_a_segment_equals_the_slice_of_the_whole(tmp_path: Path, suffix: str, start: float | None, end: float | None):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(220_500, 2), 22050)
    whole = load_audio(path, sampling_rate=22050).values
    part = load_audio(path, sampling_rate=22050, start=start, end=end).values
    first, last = round((start or 0) * 22050), min(round((end or 10) * 22050), 220_500)
    assert torch.equal(part, whole[first:last])
    item = {"type": "audio", "path": path, "start": start, "end": end}
    assert audio_item_length(item, 16000) == load_audio_item(item, 16000).num_samples


def test_a_resampled_segment_is_the_resampled_slice_of_the_whole(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", noise(441_000), 44100, subtype="FLOAT")
    whole = load_audio(tmp_path / "a.wav", sampling_rate=16000).values.numpy()
    part = load_audio(tmp_path / "a.wav", sampling_rate=16000, start=2.0, end=5.0).values.numpy()
    assert len(part) == 48000
    np.testing.assert_allclose(part[500:-500], whole[32500:79500], atol=1e-3)  # but for the borders


def test_long_files_are_read_in_blocks_that_join_exactly(tmp_path: Path):
    values = noise(300_001)
    soundfile.write(tmp_path / "a.wav", values, 48000, subtype="FLOAT")
    loaded = load_audio(tmp_path / "a.wav", sampling_rate=48000).values.numpy()
    assert np.array_equal(loaded, values[:, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32])
def test_in_memory_audio(dtype: type):
    values = noise(8000)[:, 0]
    array = values.astype(dtype) if np.issubdtype(dtype, np.floating) else (values * -np.iinfo(dtype).min).astype(dtype)
    medium = load_audio_item({"type": "audio", "array": array, "sampling_rate": 8000}, 8000)
    np.testing.assert_allclose(medium.values.numpy(), values, atol=1e-4)
    stereo = load_audio_item({"type": "audio", "array": np.stack([array, 0 * array]), "sampling_rate": 8000}, 8000)
    np.testing.assert_allclose(stereo.values.numpy(), values / 2, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_in_memory_tensors_are_resampled_and_cut_like_files(tmp_path: Path, dtype: torch.dtype):
    values = torch.from_numpy(noise(48_000)[:, 0]).to(dtype)
    soundfile.write(tmp_path / "a.wav", values.float().numpy(), 24000, subtype="FLOAT")
    span = {"start": 0.25, "end": 1.5}
    item = {"type": "audio", "array": values, "sampling_rate": 24000, **span}
    medium = load_audio_item(item, 16000)
    assert torch.equal(medium.values, load_audio(tmp_path / "a.wav", sampling_rate=16000, **span).values)
    assert medium.num_samples == audio_item_length(item, 16000) == 20000


def test_loading_does_not_change_what_is_in_memory():
    values = torch.ones(100)
    medium = load_audio_item({"type": "audio", "array": values, "sampling_rate": 16000}, 16000)
    medium.values.zero_()
    assert values.sum() == 100


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    soundfile.write(tmp_path / "a.wav", noise(100), 16000)
    assert load_audio_item({"type": "audio", "path": "~/a.wav"}, 16000).num_samples == 100
    assert audio_info("~/a.wav").num_samples == 100


def test_reading_headers_imports_no_torch():
    code = "import sys, speechlmm_core.media.audio; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
