"""Reads MP3, Vorbis, m4a, webm and what else libsndfile lacks by FFmpeg, through PyAV. Imports no torch.

Such headers state lengths less exactly: an encoder's padding at the end is rounded, times may be in milliseconds. The
header's length counts: decoding is trimmed to it, or filled with silence where less than `END_SLACK_S` is missing.

Shapes: L samples, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

import av
import av.error
import numpy as np

from speechlmm_core.errors import MediaError
from speechlmm_core.media.container import mp3_has_length
from speechlmm_core.media.reader import PREROLL_S, AudioInfo, Block, average
from speechlmm_core.media.source import MediaSource

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

END_SLACK_S = 0.2
"""Seconds that may be missing at the end: a few codec frames of encoder delay and padding."""
STATED_LENGTH = frozenset({"mov", "mp4", "m4a", "matroska", "webm", "ogg", "asf", "caf", "avi", "wav", "aiff", "wv"})
"""Containers whose header states the length; for the rest FFmpeg would guess it from the bit rate."""
CONTAINERS = ",".join(
    sorted(STATED_LENGTH | {"aac", "ac3", "amr", "ape", "au", "eac3", "flac", "flv", "mp3", "mpeg", "mpegts", "tta"})
)
"""What may be opened: no playlists, which would open further files or the network."""


def av_input(source: MediaSource) -> str | BinaryIO:
    """What PyAV opens: the path with its protocol (a name may look like an address), or the bytes of a part."""
    return f"file:{source.path}" if source.whole else source.open()


class PyAVReader:
    """An audio file, or the first sound track of a video, that FFmpeg reads."""

    def __init__(self, path: MediaSource) -> None:
        self.path = path
        self._container, self._stream = self._open()
        rate, channels = self._stream.rate, self._stream.channels
        self._time_base = float(self._stream.time_base or 0)
        try:
            num_samples = round(self._duration_s() * rate)
        except av.error.FFmpegError as exc:
            self.close()
            raise _unreadable(path, exc) from exc
        self.info = AudioInfo(num_samples, rate, channels)
        self.end_tolerance = int(END_SLACK_S * rate)

    def _open(self) -> tuple[InputContainer, AudioStream]:
        options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
        try:
            container = av.open(av_input(self.path), mode="r", options=options)
        except (av.error.FFmpegError, UnicodeError) as exc:
            raise _unreadable(self.path, exc) from exc
        if not container.streams.audio:
            container.close()
            raise MediaError(f"{self.path}: holds no audio; give an audio file, or a video that has a sound track")
        stream = container.streams.audio[0]
        # Where FFmpeg knows no decoder, the stream has no such properties.
        if not getattr(stream, "rate", 0) or not getattr(stream, "channels", 0):
            container.close()
            raise _unreadable(self.path, "no audio could be recognised in it")
        return container, stream

    def _duration_s(self) -> float:
        """Seconds of audio: what the header states, or what the packets' time stamps add up to."""
        names = set(self._container.format.name.split(","))
        stated = bool(STATED_LENGTH & names) or ("mp3" in names and mp3_has_length(self.path))
        if stated and self._stream.duration:
            return self._stream.duration * self._time_base
        if stated and self._container.duration and len(self._container.streams) == 1:
            start = (self._stream.start_time or 0) * self._time_base
            return self._container.duration / av.time_base - max(0.0, start)
        first: int | None = None
        end = 0
        for packet in self._container.demux(self._stream):
            if packet.pts is not None:
                first = packet.pts if first is None else min(first, packet.pts)
                end = max(end, packet.pts + (packet.duration or 0))
        self._reopen()
        return (end - (first or 0)) * self._time_base

    def _reopen(self) -> None:
        self._container.close()
        self._container, self._stream = self._open()

    def blocks(self, first: int, last: int) -> Iterator[Block]:
        """Decodes the samples from ``first`` to ``last`` (exclusive) as mono blocks (L,).

        Raises:
            MediaError: The file is damaged.
        """
        try:
            position, frames = self._frames_from(first)
            for frame in frames:
                if frame.sample_rate != self.info.sampling_rate:
                    raise MediaError(f"{self.path}: its sampling rate changes on the way; convert it to a WAV file")
                begin = max(0, first - position)
                count = min(frame.samples, last - position)
                position += frame.samples
                if begin < count:
                    yield _mono(frame, self.path.channel)[begin:count]
                if position >= last:
                    return
        except (av.error.FFmpegError, UnicodeError) as exc:
            raise _unreadable(self.path, exc) from exc

    def _frames_from(self, first: int) -> tuple[int, Iterator[AudioFrame]]:
        """The frames from a little before sample ``first``, and the first one's position."""
        for preroll in (PREROLL_S, 4 * PREROLL_S, 20 * PREROLL_S):
            self._reopen()
            frames = self._container.decode(self._stream)
            early = first / self.info.sampling_rate - preroll
            if early <= preroll:
                return 0, frames
            head = [frame for frame, _ in zip(frames, range(2), strict=False)]
            if len(head) < 2 or head[0].pts is None:
                return 0, chain(head, frames)
            found = self._seek(early, head)
            # A seek may land later than it was asked to, too late for the decoder to have settled.
            if found is not None and found[0] <= first - int(preroll / 2 * self.info.sampling_rate):
                return found
        self._reopen()
        return 0, self._container.decode(self._stream)

    def _seek(self, early: float, head: list[AudioFrame]) -> tuple[int, Iterator[AudioFrame]] | None:
        """Seeks to ``early`` seconds; ``head`` are the file's first two frames."""
        origin = head[0].pts or 0
        try:
            self._container.seek(origin + int(early / self._time_base), stream=self._stream)
            frames = self._container.decode(self._stream)
            frame = next(frames, None)
        except av.error.FFmpegError:
            return None
        if frame is None or frame.pts is None:
            return None
        position = round((frame.pts - origin) * self._time_base * self.info.sampling_rate)
        position = self._snap(position, head[0].samples, head[1].samples)
        return (position, chain([frame], frames)) if position >= 0 else None

    def _snap(self, position: int, head: int, step: int) -> int:
        """Moves a position that a coarse time base rounded to the codec frame's border beside it."""
        error = self._time_base * self.info.sampling_rate
        nearest = head + round((position - head) / step) * step
        return nearest if error > 1 and abs(nearest - position) <= error + 1 else position

    def close(self) -> None:
        """Closes the file."""
        self._container.close()


def _mono(frame: AudioFrame, channel: int | None) -> Block:
    values: np.ndarray[Any, Any] = frame.to_ndarray()  # (C, L) where planar, (1, L * C) where interleaved
    channels = frame.layout.nb_channels
    if not frame.format.is_planar:
        values = values.reshape(-1, channels).T  # (C, L)
    if channel is not None:
        values = values[channel : channel + 1]  # (1, L)
    if values.dtype.kind == "u":
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        values = values.astype(np.float32) / -float(np.iinfo(values.dtype).min)
    return average(values, axis=0)  # (L,)


def _unreadable(path: MediaSource, reason: object) -> MediaError:
    why = getattr(reason, "strerror", None) or str(reason)
    return MediaError(f"{path}: not an audio file that can be read, or a damaged one ({why}); check it or convert it")
