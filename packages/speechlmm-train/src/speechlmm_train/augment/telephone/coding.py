"""Sends sound through a lossy codec and back, in memory, by FFmpeg through PyAV.

Shapes: L samples.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import av.error
import numpy as np

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.augmentation import Samples
from speechlmm_train.augment.telephone.line import LINE_RATE, resampled

ENCODERS = {
    "opus": ("libopus", "ogg", 8000),
    "mp3": ("libmp3lame", "mp3", 8000),
    "gsm": ("libgsm", "gsm", 13_000),
    "amr": ("libopencore_amrnb", "amr", 12_200),
}
"""FFmpeg's encoder, container, and the bit rate where none is given."""


def through_codec(samples: Samples, codec: str, bit_rate: int | None) -> Samples:
    """(L,) samples at 8 kHz as they come out of a codec; as many, and aligned as far as the container tells the delay.

    Raises:
        DataError: This FFmpeg cannot encode it.
    """
    name, container, usual = ENCODERS[codec]
    try:
        packed = _encode(samples, name, container, bit_rate or usual)
        decoded, rate = _decode(packed, container)
    except (av.error.FFmpegError, ValueError) as exc:
        why = str(exc) or "unknown codec"
        raise DataError(
            f"codec {codec!r}: FFmpeg's encoder {name!r} is not there, or refuses ({why}); choose another codec"
        ) from exc
    decoded = resampled(decoded, rate, LINE_RATE)
    out = np.zeros(len(samples), np.float32)
    out[: min(len(out), len(decoded))] = decoded[: len(out)]
    return out


def _encode(samples: Samples, name: str, container: str, bit_rate: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as target:
        stream = target.add_stream(name, rate=LINE_RATE, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = bit_rate
        # Two frames of silence behind the end make up for the decoder's delay.
        values = np.concatenate([samples, np.zeros(LINE_RATE // 10, np.float32)]).clip(-1, 1)
        whole = np.round(values * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(whole[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = LINE_RATE, 0, Fraction(1, LINE_RATE)
        resampler = av.AudioResampler(stream.codec_context.format, "mono", LINE_RATE, stream.codec_context.frame_size)
        for ready in [*resampler.resample(frame), *resampler.resample(None)]:
            target.mux(stream.encode(ready))
        target.mux(stream.encode(None))
    return buffer.getvalue()


def _decode(packed: bytes, container: str) -> tuple[Samples, int]:
    with av.open(io.BytesIO(packed), "r", format=container) as source:
        stream = source.streams.audio[0]
        resampler = av.AudioResampler("flt", "mono")
        frames = [part for frame in source.decode(stream) for part in resampler.resample(frame)]
        values = [part.to_ndarray().reshape(-1) for part in frames]
        return np.concatenate(values).astype(np.float32), stream.rate
