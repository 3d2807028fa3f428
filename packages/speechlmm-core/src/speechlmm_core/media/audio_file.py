"""Opens an audio file with the library that reads it best, and tells its properties. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import soundfile

from speechlmm_core.errors import MediaError
from speechlmm_core.media.container import sniff
from speechlmm_core.media.pyav_reader import PyAVReader
from speechlmm_core.media.reader import MAX_CHANNELS, MAX_RATE, MIN_RATE, AudioInfo, AudioReader
from speechlmm_core.media.soundfile_reader import UNKNOWN_LENGTH, SoundFileReader
from speechlmm_core.media.source import MediaSource, as_source


def audio_info(path: str | Path | MediaSource) -> AudioInfo:
    """Length, rate and channels of an audio file; nothing is decoded.

    Formats that state no length (raw AAC, MP3 without a Xing header, recordings of a browser) are scanned for it,
    packet by packet.

    Raises:
        MediaError: The file is missing, not audio, empty or truncated.
    """
    reader = open_audio(as_source(path))
    try:
        return reader.info
    finally:
        reader.close()


def complete_audio_info(path: str | Path | MediaSource) -> AudioInfo:
    """As `audio_info`, and makes sure that the end is there, as far as that takes no decoding of the whole.

    Raises:
        MediaError: The file is missing, not audio, empty or cut off.
    """
    reader = open_audio(as_source(path))
    try:
        if isinstance(reader, SoundFileReader):
            reader.check_end()
        return reader.info
    finally:
        reader.close()


def open_audio(path: MediaSource) -> AudioReader:
    """Opens an audio file for reading; the caller closes it.

    Raises:
        MediaError: The file is missing, not audio, empty or truncated.
    """
    try:
        path.check("an audio file")
        reader = _open(path)
    except OSError as exc:
        raise MediaError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    info = reader.info
    if not MIN_RATE <= info.sampling_rate <= MAX_RATE or info.num_channels > MAX_CHANNELS:
        reader.close()
        raise MediaError(
            f"{path}: damaged: its header says {info.sampling_rate} samples a second and {info.num_channels} channels; "
            f"expected {MIN_RATE} to {MAX_RATE} and at most {MAX_CHANNELS}; copy or download it again"
        )
    if path.channel is not None and path.channel >= info.num_channels:
        reader.close()
        raise MediaError(f"{path}: there is no channel {path.channel}, as the audio has {info.num_channels}, from 0 on")
    if info.num_samples <= 0:
        reader.close()
        raise MediaError(f"{path}: the file holds no audio samples; leave it out or record it again")
    return reader


def _open(path: MediaSource) -> AudioReader:
    if sniff(path) == "soundfile":
        try:
            reader = SoundFileReader(path)
        except (soundfile.LibsndfileError, TypeError):
            return PyAVReader(path)  # a codec that libsndfile lacks, such as AAC in a CAF file
        if reader.info.num_samples < UNKNOWN_LENGTH:
            return reader
        reader.close()
    return PyAVReader(path)
