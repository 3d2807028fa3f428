"""Batched log-mel spectrograms that equal those of transformers' `WhisperFeatureExtractor`.

16 kHz -> 100 Hz. A 400-sample periodic Hann window every 160 samples, Slaney mel filters, log10 floored eight decades
below the clip's maximum. Each clip is transformed as if it were alone: it is mirrored at its own ends, and the maximum
is its own. Source: Radford et al., 2022, "Robust Speech Recognition via Large-Scale Weak Supervision"
(arXiv:2212.04356).

Shapes: B clips, L samples, F frequency bins, M mel bins, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from speechlmm_core.lengths import ceil_div
from speechlmm_encoders.layered import SAMPLING_RATE
from speechlmm_encoders.whisper.config import HOP_LENGTH

N_FFT = 400
MARGIN = N_FFT // 2
"""Samples mirrored at either end."""
TAIL = 2
"""Frames after a clip's last that its samples still reach, where silence follows."""
FLOOR = 1e-10
GROUP_SAMPLES = 1 << 17
"""Padded samples transformed at a time: what fits into a processor's cache."""


@cache
def _window() -> Tensor:
    return torch.hann_window(N_FFT, dtype=torch.float32, device="cpu")  # (N_FFT,)


@cache
def _filters(num_mel_bins: int) -> Tensor:
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=1 + N_FFT // 2,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=SAMPLING_RATE / 2,
        sampling_rate=SAMPLING_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float().contiguous()  # (F, M)


def log_mel(waveforms: Sequence[Tensor], num_mel_bins: int) -> tuple[Tensor, Tensor]:
    """Log-mel spectrograms of clips of any length.

    A clip is padded with zeros to a whole number of hops: the same as the feature extractor's ``padding="longest",
    pad_to_multiple_of=160`` for that clip alone.

    Args:
        waveforms: B tensors (L,), fp32 at 16 kHz.
        num_mel_bins: M.

    Returns:
        (B, M, T), zero beyond a clip's frames, and the numbers of frames (B,).
    """
    lengths = [ceil_div(waveform.shape[0], HOP_LENGTH) for waveform in waveforms]
    values = torch.zeros(len(waveforms), num_mel_bins, max(lengths, default=0))  # (B, M, T)
    for group in _groups(lengths):
        frames = [lengths[row] for row in group]
        spectrogram = _log10_mel(
            [waveforms[row] for row in group], [mirror_at(n) for n in frames], max(frames), num_mel_bins
        )
        num_frames = torch.tensor(frames)
        valid = torch.arange(spectrogram.shape[1])[None, :] < num_frames[:, None]  # (B, T)
        loudest = spectrogram.amax(2).masked_fill(~valid, -torch.inf).amax(1)  # (B,)
        scaled = _scale(spectrogram, loudest).masked_fill(~valid[:, :, None], 0.0)  # (B, T, M)
        _store(values, group, scaled)
    return values, torch.tensor(lengths, dtype=torch.long)


def padded_log_mel(waveforms: Sequence[Tensor], num_mel_bins: int, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-mel spectrograms of clips that are padded with silence to one length, in compact form.

    After `TAIL` frames beyond the end of a clip the spectrogram of silence is constant, so it is not computed and not
    stored. `expand_silence` restores the whole.

    Args:
        waveforms: B tensors (L,), fp32 at 16 kHz, of ``num_samples`` samples at most.
        num_mel_bins: M.
        num_samples: Padded length, a multiple of 160.

    Returns:
        (B, M, T + TAIL), the numbers of frames of audio (B,), and the value of silence (B,).
    """
    lengths = [ceil_div(waveform.shape[0], HOP_LENGTH) for waveform in waveforms]
    total = num_samples // HOP_LENGTH
    values = torch.zeros(len(waveforms), num_mel_bins, max(lengths, default=0) + TAIL)  # (B, M, T + TAIL)
    silence = torch.zeros(len(waveforms))
    for group in _groups(lengths):
        frames = max(lengths[row] for row in group) + TAIL
        clips = [waveforms[row] for row in group]
        spectrogram = _log10_mel(clips, [num_samples] * len(group), frames, num_mel_bins)[:, :total]  # (B, T, M)
        loudest = spectrogram.amax((1, 2))  # (B,)
        _store(values, group, _scale(spectrogram, loudest))
        silence[list(group)] = (torch.clamp(loudest - 8.0, min=-10.0) + 4.0) / 4.0
    return values, torch.tensor(lengths, dtype=torch.long), silence


def expand_silence(values: Tensor, lengths: Tensor, silence: Tensor, num_frames: int) -> Tensor:
    """Restores the whole spectrograms (B, M, ``num_frames``) from what `padded_log_mel` returned."""
    short = num_frames - values.shape[2]
    values = torch.nn.functional.pad(values, (0, short)) if short > 0 else values[:, :, :num_frames]
    known = torch.arange(num_frames, device=values.device)[None, :] < lengths[:, None] + TAIL  # (B, T)
    return torch.where(known[:, None, :], values, silence[:, None, None].to(values.dtype))  # (B, M, T)


def mirror_at(num_frames: int) -> int:
    """Sample at which a clip of so many frames is mirrored; a very short one is padded, as a mirror needs content."""
    return max(num_frames * HOP_LENGTH, 2 * HOP_LENGTH)


def _groups(lengths: list[int]) -> list[list[int]]:
    """Rows in the order of their length, as many together as stay within the cache."""
    groups: list[list[int]] = []
    for row in sorted((row for row, length in enumerate(lengths) if length), key=lengths.__getitem__):
        if groups and lengths[row] * HOP_LENGTH * (len(groups[-1]) + 1) <= GROUP_SAMPLES:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _log10_mel(waveforms: Sequence[Tensor], ends: Sequence[int], num_frames: int, num_mel_bins: int) -> Tensor:
    """(B, T, M) log10 of the mel power; clips are mirrored at zero and at ``ends``."""
    extent = max((num_frames - 1) * HOP_LENGTH + N_FFT, max(len(waveform) for waveform in waveforms) + 2 * MARGIN)
    padded = torch.zeros(len(waveforms), extent)  # (B, MARGIN + L + MARGIN)
    for row, waveform, end in zip(padded, waveforms, ends, strict=True):
        row[MARGIN : MARGIN + len(waveform)] = waveform
        stop = min(end + 2 * MARGIN, extent)
        if stop > end + MARGIN:
            width = stop - end - MARGIN
            row[end + MARGIN : stop] = row[end + MARGIN - 1 - width : end + MARGIN - 1].flip(0)
    padded[:, :MARGIN] = padded[:, MARGIN + 1 : 2 * MARGIN + 1].flip(1)
    frames = padded.unfold(1, N_FFT, HOP_LENGTH)[:, :num_frames]  # (B, T, N_FFT)
    spectrogram = torch.empty(len(waveforms), num_frames, num_mel_bins)  # (B, T, M)
    step = max(1, GROUP_SAMPLES // HOP_LENGTH // len(waveforms))
    for start in range(0, num_frames, step):
        block = frames[:, start : start + step] * _window()
        spectrum = torch.fft.rfft(block)
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)  # (B, T, F)
        # Not by `out=`, which needs a block of several clips to be contiguous.
        spectrogram[:, start : start + step] = power @ _filters(num_mel_bins)  # (B, T, M)
    return spectrogram.clamp_(min=FLOOR).log10_()


def _scale(spectrogram: Tensor, loudest: Tensor) -> Tensor:
    return torch.maximum(spectrogram, loudest[:, None, None] - 8.0).add_(4.0).div_(4.0)


def _store(values: Tensor, rows: list[int], spectrogram: Tensor) -> None:
    """Writes (B, T, M) into some rows of (B, M, T)."""
    values[rows, :, : spectrogram.shape[1]] = spectrogram.transpose(1, 2)
