"""Reads WAV, FLAC, AIFF, AU and Ogg Opus by libsndfile. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import soundfile

from speechlmm_core.errors import MediaError
from speechlmm_core.media.reader import BLOCK_SAMPLES, PREROLL_S, AudioInfo, Block, average
from speechlmm_core.media.source import MediaSource

UNKNOWN_LENGTH = 1 << 62
"""libsndfile's count for a FLAC stream whose header does not say its length (and more than any real one)."""


class SoundFileReader:
    """An audio file that libsndfile reads; its headers are exact for these formats."""

    end_tolerance = 0

    def __init__(self, path: MediaSource) -> None:
        self.path = path
        self._data = None if path.whole else path.open()
        self._file = soundfile.SoundFile(str(path) if self._data is None else self._data)
        self.info = AudioInfo(self._file.frames, self._file.samplerate, self._file.channels)

    def blocks(self, first: int, last: int) -> Iterator[Block]:
        """Decodes the samples from ``first`` to ``last`` (exclusive) as mono blocks (L,).

        Raises:
            MediaError: The file is damaged.
        """
        preroll = int(PREROLL_S * self.info.sampling_rate) if self._file.format == "OGG" else 0
        position = max(0, first - preroll)
        size = max(1, min(BLOCK_SAMPLES, 8 * BLOCK_SAMPLES // self.info.num_channels))
        try:
            if position:
                self._file.seek(position)
            while position < last:
                read = self._file.read(min(size, last - position), dtype="float32", always_2d=True)  # (L, C)
                block = np.asarray(read, np.float32)
                skip = max(0, first - position)
                position += len(block)
                if not len(block):
                    return
                mono = self._mono(block)
                if skip < len(mono):
                    yield mono[skip:]
        except soundfile.LibsndfileError as exc:
            raise MediaError(
                f"{self.path}: truncated or damaged: decoding failed near {position / self.info.sampling_rate:.1f} s "
                f"of {self.info.duration_s:.1f} s ({exc.error_string.rstrip('.')}); copy or download it again"
            ) from exc

    def check_end(self) -> None:
        """Makes sure that the end of a FLAC file is there, whose header alone does not tell; decodes one frame.

        Raises:
            MediaError: The file is cut off.
        """
        if self._file.format != "FLAC":
            return
        try:
            self._file.seek(self.info.num_samples - 1)
            there = len(self._file.read(1, always_2d=True)) == 1
        except soundfile.LibsndfileError:
            there = False
        if not there:
            raise MediaError(
                f"{self.path}: truncated: its header says {self.info.duration_s:.1f} s, and their end is not there; "
                "copy or download it again"
            )

    def _mono(self, block: Block) -> Block:
        channel = 0 if block.shape[1] == 1 else self.path.channel
        return average(block, axis=1) if channel is None else block[:, channel]  # (L, C) -> (L,)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        if self._data is not None:
            self._data.close()
