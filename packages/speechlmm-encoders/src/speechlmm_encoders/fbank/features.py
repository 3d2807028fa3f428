"""Filter-bank features that equal those of transformers' `SeamlessM4TFeatureExtractor`.

16 kHz -> 50 Hz. Kaldi's recipe: 25 ms windows every 10 ms within the clip (Povey, without an offset, pre-emphasised),
mel power, natural logarithm; then each mel bin is brought to zero mean and unit variance over the clip, and two frames
make one. Source: Povey et al., 2011, "The Kaldi Speech Recognition Toolkit" (ASRU), and Seamless Communication et al.,
2023, "Seamless: Multilingual Expressive and Streaming Speech Translation" (arXiv:2312.05187).

Shapes: B clips, L samples, F frequency bins, M mel bins, N filter-bank frames, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import gcd

import torch
from torch import Tensor

from speechlmm_core.lengths import conv_output_length
from speechlmm_encoders.fbank.config import FRAME_LENGTH, HOP_LENGTH, STRIDE
from speechlmm_encoders.layered import SAMPLING_RATE

N_FFT = 512
PREEMPHASIS = 0.97
FULL_SCALE = 1 << 15
"""Kaldi takes samples as 16-bit integers."""
MIN_FREQUENCY = 20.0
FLOOR = torch.finfo(torch.float32).eps
"""Least mel power."""
VARIANCE_FLOOR = 1e-7
"""Added to the variance of a mel bin."""
BLOCK = 256
"""Filter-bank frames transformed at a time: what fits into a processor's cache."""
STEP = gcd(FRAME_LENGTH, HOP_LENGTH)
"""Samples of which both the window and the hop are multiples."""


@cache
def _window() -> Tensor:
    hann = torch.hann_window(FRAME_LENGTH, periodic=False, dtype=torch.float64, device="cpu")
    return hann.pow(0.85)  # (FRAME_LENGTH,); its first value is zero


@cache
def _filters(num_mel_bins: int) -> Tensor:
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=1 + N_FFT // 2,
        num_mel_filters=num_mel_bins,
        min_frequency=MIN_FREQUENCY,
        max_frequency=SAMPLING_RATE / 2,
        sampling_rate=SAMPLING_RATE,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return torch.from_numpy(filters).float().contiguous()  # (F, M)


def normalized_fbank(waveforms: Sequence[Tensor], num_mel_bins: int) -> tuple[Tensor, Tensor]:
    """Normalised filter-bank features of clips of any length, two frames side by side.

    Each clip is transformed as if it were alone. An odd frame at the end counts for the mean and the variance, and is
    then left out; the feature extractor fills it up with zeros and masks it.

    Args:
        waveforms: B tensors (L,), fp32 at 16 kHz.
        num_mel_bins: M.

    Returns:
        (B, T, 2 M), zero beyond a clip's frames, and the numbers of frames (B,).
    """
    lengths = [
        conv_output_length(len(waveform), kernel_size=FRAME_LENGTH, stride=HOP_LENGTH) // STRIDE
        for waveform in waveforms
    ]
    values = torch.zeros(len(waveforms), max(lengths, default=0), STRIDE * num_mel_bins)  # (B, T, 2 M)
    for target, waveform, length in zip(values, waveforms, lengths, strict=True):
        if length:
            features = fbank(waveform, num_mel_bins)  # (N, M)
            variance, mean = torch.var_mean(features, 0)  # (M,), with Bessel's correction
            paired = features[: STRIDE * length].sub_(mean).div_(variance.add_(VARIANCE_FLOOR).sqrt_())
            target[:length] = paired.view(length, STRIDE * num_mel_bins)  # (T, 2 M)
    return values, torch.tensor(lengths, dtype=torch.long)


def fbank(waveform: Tensor, num_mel_bins: int) -> Tensor:
    """(N, M) log mel power of a clip (L,)."""
    num_frames = conv_output_length(len(waveform), kernel_size=FRAME_LENGTH, stride=HOP_LENGTH)
    features = torch.empty(num_frames, num_mel_bins)  # (N, M)
    buffer = torch.zeros(min(BLOCK, num_frames), N_FFT, dtype=torch.float64)
    for start in range(0, num_frames, BLOCK):
        count = min(BLOCK, num_frames - start)
        windowed = buffer[:count]
        first = start * HOP_LENGTH
        # In fp64 up to the power: a window's quiet bins drown in the rounding of its loud ones.
        samples = waveform[first : first + (count - 1) * HOP_LENGTH + FRAME_LENGTH].double() * FULL_SCALE
        # Pre-emphasis is linear: that of all samples will do for every window, less what it leaves of the window's
        # mean, which comes from sums that windows share. A window's first sample has no weight.
        sums = samples.view(-1, STEP).sum(1).unfold(0, FRAME_LENGTH // STEP, HOP_LENGTH // STEP).sum(1)  # (N,)
        samples[1:] -= PREEMPHASIS * samples[:-1]
        offsets = sums[:, None] * ((1 - PREEMPHASIS) / FRAME_LENGTH)
        torch.sub(samples.unfold(0, FRAME_LENGTH, HOP_LENGTH), offsets, out=windowed[:, :FRAME_LENGTH])
        windowed[:, :FRAME_LENGTH] *= _window()
        spectrum = torch.fft.rfft(windowed)  # (N, F)
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        torch.matmul(power.float(), _filters(num_mel_bins), out=features[start : start + count])
    return features.clamp_(min=FLOOR).log_()
