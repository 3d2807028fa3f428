"""Our filter banks equal transformers' feature extractor, clip by clip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import SeamlessM4TFeatureExtractor

from speechlmm_core.errors import DataError
from speechlmm_core.media.medium import Medium
from speechlmm_encoders.fbank.features import fbank, normalized_fbank
from speechlmm_encoders.w2v_bert_2.config import W2vBert2EncoderConfig

LENGTHS = (560, 561, 719, 720, 721, 879, 880, 1000, 1600, 4001, 15_999, 16_000, 16_001, 41_357, 48_000, 320_399)


def noise(length: int, seed: int = 0) -> torch.Tensor:
    """Noise with an offset that swells and falls, so that the frames of a short clip differ and some are quiet."""
    generator = torch.Generator().manual_seed(seed + length)
    loudness = torch.linspace(-9, -1, length // 2 + 1).exp()
    loudness = torch.cat([loudness, loudness.flip(0)])[:length]
    return torch.randn(length, generator=generator) * loudness + 0.05


def reference(wave: torch.Tensor, bins: int = 80, **options):
    extractor = SeamlessM4TFeatureExtractor(feature_size=bins, num_mel_bins=bins)
    out = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt", **options)
    return out.input_features[0], int(out.attention_mask[0].sum())


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


@pytest.mark.parametrize("bins", [80, 8])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_clip_equals_the_feature_extractor(length, bins):
    wave = noise(length)
    values, lengths = normalized_fbank([wave], bins)
    theirs, count = reference(wave, bins)
    assert lengths.tolist() == [count]  # where the number of filter banks is odd, theirs fills up and masks a frame
    # Of few frames the variance may be next to nothing, and fp32's rounding of the logarithms comes out larger.
    limit = 1e-5 if count > 2 else 1e-4
    assert relative(values[0], theirs[:count]) < limit
    unfilled, whole = reference(wave, bins, pad_to_multiple_of=None)
    assert whole == len(unfilled) == count
    assert relative(values[0], unfilled) < limit


@pytest.mark.parametrize("length", [400, 401, 560, 720, 16_000])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 3e-5, 0.0])
def test_before_they_are_normalised(length, scale):
    wave = noise(length) * scale
    ours = fbank(wave, 80)
    theirs, _ = reference(wave, do_normalize_per_mel_bins=False)
    assert relative(ours, theirs.reshape(-1, 80)[: len(ours)]) < 1e-6


def test_loud_tones_beside_quiet_ones():
    """Rounding in a loud bin must not reach the quiet ones."""
    seconds = torch.arange(32_000) / 16_000
    wave = 0.9 * torch.sin(2 * torch.pi * 200 * seconds) + 1e-5 * torch.sin(2 * torch.pi * 6000 * seconds)
    wave = (wave * 32_767).round() / 32_768
    theirs, _ = reference(wave, do_normalize_per_mel_bins=False)
    assert relative(fbank(wave, 80), theirs.reshape(-1, 80)) < 1e-6


def test_what_is_too_short_for_two_frames_has_none():
    waves = [torch.randn(length) for length in (0, 1, 399, 400, 559)]
    values, lengths = normalized_fbank(waves, 80)
    assert values.shape == (5, 0, 160)
    assert lengths.tolist() == [0] * 5
    values, lengths = normalized_fbank([], 80)
    assert values.shape == (0, 0, 160)
    assert lengths.tolist() == []


def test_silence_is_zero():
    values, _ = normalized_fbank([torch.zeros(8000)], 80)
    assert not values.any()


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 6000), max_size=5))
def test_a_clip_s_features_do_not_depend_on_its_batch(lengths):
    waves = [noise(length, seed=number) for number, length in enumerate(lengths)]
    before = [wave.clone() for wave in waves]
    values, frames = normalized_fbank(waves, 16)
    for wave, ours, count in zip(before, values, frames, strict=True):
        alone, _ = normalized_fbank([wave], 16)
        assert torch.equal(ours[:count], alone[0])
        assert not ours[count:].any()
    assert all(torch.equal(wave, old) for wave, old in zip(waves, before, strict=True))


def test_chunks_are_cut_from_features_normalised_over_the_whole_clip():
    config = W2vBert2EncoderConfig(chunk_seconds=0.5, chunk_overlap_seconds=0.1)
    clips = [Medium(noise(length), 16_000) for length in (30_000, 5_000)]
    inputs = config.build_preprocessor()(clips)
    whole, count = reference(clips[0].values)
    # Windows of 25 frames less the one that the window's end cuts off, 5 of them overlapping on either side.
    starts = range(0, count - 10, 14)
    assert inputs["lengths"].tolist() == [*(min(24, count - start) for start in starts), 14]
    for row, start in enumerate(starts):
        expected = whole[start : start + 24][: count - start]
        assert relative(inputs["input_features"][row, : len(expected)], expected) < 1e-5
        assert not inputs["input_features"][row, len(expected) :].any()
    assert inputs["merged_lengths"].tolist() == [count, 14]


def test_audio_at_another_rate_is_refused():
    with pytest.raises(DataError, match="got audio at 8000 Hz, expected 16000 Hz"):
        W2vBert2EncoderConfig().build_preprocessor()([Medium(torch.zeros(8000), 8000)])
