"""Our log-mel equals transformers' feature extractor, clip by clip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from speechlmm_encoders.whisper.log_mel import expand_silence, log_mel, padded_log_mel

LENGTHS = (16_000, 1, 161, 48_000, 31_999, 480_000 - 150)


def noise(length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + length)
    wave = torch.randn(length, generator=generator) * 0.1
    wave[length // 2 :] *= 1e-4  # the dynamic range makes the floor below the clip's maximum bite
    return wave


def reference(wave: torch.Tensor, bins: int, **options) -> torch.Tensor:
    extractor = WhisperFeatureExtractor(feature_size=bins)
    return extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt", **options).input_features[0]


@pytest.mark.parametrize("bins", [80, 128])
def test_windows_equal_the_feature_extractor_as_it_comes(bins):
    waves = [noise(length) for length in LENGTHS]
    values, lengths, silence = padded_log_mel(waves, bins, 480_000)
    assert lengths.tolist() == [-(-length // 160) for length in LENGTHS]
    whole = expand_silence(values, lengths, silence, 3000)
    assert whole.shape == (len(waves), bins, 3000)
    for wave, ours in zip(waves, whole, strict=True):
        torch.testing.assert_close(ours, reference(wave, bins), atol=1e-4, rtol=0)


def test_unpadded_clips_equal_the_feature_extractor_without_padding():
    waves = [noise(length) for length in LENGTHS if length > 400]
    values, lengths = log_mel(waves, 80)
    for wave, ours, length in zip(waves, values, lengths, strict=True):
        theirs = reference(wave, 80, padding="longest", pad_to_multiple_of=160)
        assert theirs.shape[1] == length
        torch.testing.assert_close(ours[:, :length], theirs, atol=1e-4, rtol=0)
        assert not ours[:, length:].any()


def test_exactly_one_window_is_the_same_either_way():
    wave = noise(480_000)
    unpadded, _ = log_mel([wave], 80)
    values, lengths, silence = padded_log_mel([wave], 80, 480_000)
    torch.testing.assert_close(unpadded, expand_silence(values, lengths, silence, 3000), atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 4000), max_size=5))
def test_a_clip_s_features_do_not_depend_on_its_batch(lengths):
    waves = [noise(length, seed=number) for number, length in enumerate(lengths)]
    values, frames = log_mel(waves, 16)
    assert frames.tolist() == [-(-length // 160) for length in lengths]
    for wave, ours, count in zip(waves, values, frames, strict=True):
        alone, _ = log_mel([wave], 16)
        torch.testing.assert_close(ours[:, :count], alone[0], atol=1e-6, rtol=0)
        assert not ours[:, count:].any()


def test_many_clips_are_transformed_in_groups():
    waves = [noise(20_000 + 500 * number) for number in range(20)]
    values, frames = log_mel(waves, 16)
    for row in (0, 7, 19):
        torch.testing.assert_close(
            values[row, :, : frames[row]],
            reference(waves[row], 16, padding="longest", pad_to_multiple_of=160),
            atol=1e-4,
            rtol=0,
        )


def test_a_group_of_windows_that_is_a_little_more_than_a_block():
    """Ten clips of 80 frames fill a block to the brim, and the two frames of each one's tail are one too many."""
    waves = [noise(12_800, seed=number) for number in range(10)]
    values, lengths, silence = padded_log_mel(waves, 16, 16_000)
    whole = expand_silence(values, lengths, silence, 100)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    for wave, ours in zip(waves, whole, strict=True):
        theirs = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_features[0]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_silence_is_finite():
    values, _ = log_mel([torch.zeros(8000)], 80)
    torch.testing.assert_close(values[0], reference(torch.zeros(8000), 80, padding="longest"))
