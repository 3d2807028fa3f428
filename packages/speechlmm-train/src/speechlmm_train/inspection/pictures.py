"""Pictures of what an encoder gets, and sound that can be played.

Shapes: B media, M feature bands, T frames, L samples, H rows, W pixels, C channels.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.media.medium import Medium

WINDOW_S, HOP_S = 0.025, 0.01
MAX_FRAMES = 8
"""Frames of a video that are shown."""
MAX_COLUMNS = 4000
GREY = "#808080"
"""Ink that can be read on light and on dark ground."""


def picture(features: dict[str, Any], medium: Medium, title: str) -> tuple[bytes, str]:
    """A PNG of what an encoder gets for one medium, and what it shows.

    Args:
        features: What the preprocessor made of the medium.
        medium: The medium.
        title: What stands above it.
    """
    found = feature_bands(features)
    if medium.values.ndim > 1:
        return _draw_frames(medium.values.numpy(), medium.sampling_rate), "frames, evenly spread over the video"
    if found is not None:
        caption = f"input_features: {found.shape[0]} bands x {found.shape[1]} frames"
        return _draw(found, medium.duration_s, caption, title), caption
    caption = "spectrogram in dB; the encoder takes the waveform itself"
    return _draw(spectrogram(medium.values.numpy(), medium.sampling_rate), medium.duration_s, caption, title), caption


def feature_bands(features: dict[str, Any]) -> NDArray[np.float32] | None:
    """(M, T) the features of one medium; None where they are no spectrogram."""
    import torch

    values = features.get("input_features")
    if not isinstance(values, torch.Tensor) or values.ndim != 3:
        return None
    lengths = features.get("lengths")
    valid = int(lengths.reshape(-1)[0]) if isinstance(lengths, torch.Tensor) and lengths.numel() else 0
    # Media that were cut into chunks are shown chunk after chunk.
    rows = list(values.float().numpy())
    # Whisper's bands lie in the rows, those of filter banks in the columns: time is where the valid length fits best.
    if abs(rows[0].shape[0] - valid) < abs(rows[0].shape[1] - valid):
        rows = [row.T for row in rows]
    joined = np.concatenate(rows, axis=1)  # (M, T)
    return joined[:, :valid] if len(rows) == 1 and 0 < valid <= joined.shape[1] else joined


def spectrogram(samples: NDArray[np.float32], sampling_rate: int) -> NDArray[np.float32]:
    """(M, T) power in dB, at least -80 dB below the strongest."""
    size, hop = round(WINDOW_S * sampling_rate), round(HOP_S * sampling_rate)
    padded = np.pad(samples, (0, max(0, size - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames)) ** 2
    decibels = 10 * np.log10(np.maximum(power, max(float(power.max()), 1e-12) * 1e-8))
    return decibels.T.astype(np.float32)


def _draw(values: NDArray[np.float32], seconds: float, label: str, title: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    step = -(-values.shape[1] // MAX_COLUMNS)
    figure = Figure(figsize=(9, 2.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(
        values[:, ::step],
        origin="lower",
        aspect="auto",
        cmap="magma",
        interpolation="nearest",
        extent=(0, seconds, 0, len(values)),
    )
    axes.set_xlabel("seconds", color=GREY)
    axes.set_ylabel("band", color=GREY)
    axes.set_title(title, color=GREY, fontsize=9, loc="left")
    axes.tick_params(colors=GREY)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.patch.set_alpha(0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True, metadata={"Description": label})
    return buffer.getvalue()


def _draw_frames(values: NDArray[Any], frame_rate: int) -> bytes:
    """The frames (T, H, W) or (T, H, W, C) of a video, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = np.unique(np.linspace(0, len(values) - 1, MAX_FRAMES).round().astype(int))
    figure = Figure(figsize=(1.3 * len(chosen), 1.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for number, index in enumerate(chosen):
        axes = figure.add_subplot(1, len(chosen), number + 1)
        frame = np.squeeze(values[index]).astype(np.float32)
        low, high = float(frame.min()), float(frame.max())
        axes.imshow((frame - low) / (high - low or 1), cmap="gray")
        axes.set_title(f"{index / frame_rate:.2f} s", color=GREY, fontsize=7)
        axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def wav(medium: Medium) -> bytes:
    """The sound as a WAV file of 16 bits; what is beyond full scale is scaled down and not clipped."""
    import soundfile

    samples = medium.values.numpy()
    peak = float(np.abs(samples).max(initial=0))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples / max(1.0, peak), medium.sampling_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
