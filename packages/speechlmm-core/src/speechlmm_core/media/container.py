"""What the first and last bytes of an audio file tell: which library reads it, and whether it was cut off.

libsndfile shortens a WAV or Ogg file that was cut in the middle without a word, hence these checks. It also guesses the
length of an MP3 file that has no Xing/Info header (far too short with a variable bit rate), and seeks in MP3 and Vorbis
to the wrong place, so FFmpeg reads these two. Imports no torch.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, Literal

from speechlmm_core.errors import MediaError
from speechlmm_core.media.source import MediaSource

TAIL_BYTES = 1 << 17
"""An Ogg page has at most 65,307 bytes, so the tail holds the header of the last one."""
MAX_CHUNKS = 10_000
"""More chunks before the samples of a WAV file, or tags before those of an MP3 file, mean that it is damaged."""
WINDOW_BYTES, STEP_BYTES = 1 << 16, 1 << 22
"""How much of a large compressed file is looked at, and how often."""


def sniff(path: MediaSource) -> Literal["soundfile", "pyav"]:
    """Chooses the library that reads the file, from its first bytes (names may lie).

    Raises:
        MediaError: The header promises more bytes than the file has.
    """
    with path.open() as file:
        head = file.read(12)
        magic = head[:4]
        if magic in {b"RIFF", b"RF64"} and head[8:12] == b"WAVE":
            _check_riff(file, path)
            return "soundfile"
        if magic == b"FORM" and head[8:11] == b"AIF":
            _check_size(path, expected=int.from_bytes(head[4:8], "big") + 8)
            return "soundfile"
        if magic == b"OggS":
            _check_ogg(file, path)
            file.seek(12)
            return "pyav" if b"\x01vorbis" in head + file.read(64) else "soundfile"
        if magic == b"fLaC" or magic[:3] == b"ID3" or (magic[:1] == b"\xff" and magic[1:2] >= b"\xe0"):
            _check_gaps(file, path, start=_after_tags(file) if magic != b"fLaC" else 0)
        if magic in {b"fLaC", b".snd", b"caff", b"riff", b"RIFX"}:
            return "soundfile"
        return "pyav"


def _check_size(path: MediaSource, *, expected: int) -> None:
    found = path.num_bytes()
    if found < expected:
        raise MediaError(
            f"{path}: truncated: its header promises {expected} bytes and the file has {found}; "
            "copy or download it again"
        )


def _check_riff(file: BinaryIO, path: MediaSource) -> None:
    size = path.num_bytes()
    wide: int | None = None  # an RF64 file's 64-bit data size
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > size:
            break
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if not any(name):
            break  # zeros where a chunk should be: gigabytes of them would be as many chunks
        if name == b"ds64":
            wide = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))[1]
        if name == b"data":
            if length == 0xFFFFFFFF and wide is not None:
                length = wide
            # Writers to a pipe cannot know the size and leave one of these; the data then reach to the file's end.
            elif length == 0xFFFFFFFF or 0x7FFFF000 <= length <= 0x80000000:
                return
            _check_size(path, expected=position + 8 + length)
            return
        position += 8 + length + length % 2
    raise MediaError(f"{path}: a WAV file without sample data; it was cut off or never finished, make it again")


def _check_ogg(file: BinaryIO, path: MediaSource) -> None:
    size = path.num_bytes()
    start = max(0, size - TAIL_BYTES)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"OggS")
    header = tail[at : at + 27]
    lacing = tail[at + 27 : at + 27 + header[26]] if len(header) == 27 else b""
    if at < 0 or len(header) < 27 or len(lacing) < header[26]:
        raise MediaError(f"{path}: truncated: the last Ogg page is cut off; copy or download it again")
    _check_size(path, expected=start + at + 27 + len(lacing) + sum(lacing))


def mp3_has_length(path: MediaSource) -> bool:
    """Whether the first MPEG frame, after an ID3v2 tag, is a Xing/Info header, which holds the exact length."""
    with path.open() as file:
        file.seek(_after_tags(file))
        frame = file.read(200)
    return b"Xing" in frame or b"Info" in frame


def _after_tags(file: BinaryIO) -> int:
    """Where the ID3v2 tags at the beginning of a file end."""
    position = 0
    for _ in range(MAX_CHUNKS):
        file.seek(position)
        head = file.read(10)
        if head[:3] != b"ID3" or len(head) < 10:
            break
        length = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        position += 10 + length + (10 if head[5] & 0x10 else 0)
    return position


def _check_gaps(file: BinaryIO, path: MediaSource, *, start: int) -> None:
    """Refuses compressed audio in which megabytes were never written.

    Such audio holds no long run of zeros, not even for silence: the frames' headers lie between. Libraries take long to
    search through one for the next frame, and FFmpeg keeps all of it in memory.
    """
    for position in range(start + STEP_BYTES, path.num_bytes() - WINDOW_BYTES, STEP_BYTES):
        file.seek(position)
        if not any(file.read(WINDOW_BYTES)):
            raise MediaError(f"{path}: damaged: from byte {position} on it holds zeros; copy or download it again")
