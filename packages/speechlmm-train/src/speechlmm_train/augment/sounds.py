"""A folder of sounds that augmentations take theirs from: the files and their headers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError, MediaError
from speechlmm_core.media.audio import AudioInfo, audio_info

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aif", ".aiff", ".au"})


@dataclass(frozen=True)
class Sound:
    """A file and what its header says."""

    path: Path
    info: AudioInfo


def find_sounds(path: str | None, base: Path, what: str) -> tuple[Sound, ...]:
    """The audio files in a folder and below it, in an order that is the same on every machine.

    Args:
        path: The folder, or a single file.
        base: Where a relative path starts.
        what: What the sounds are, for messages.

    Raises:
        DataError: The folder is missing or holds none, or files in it cannot be used.
    """
    if not path:
        raise DataError(f"expected `path`, a folder of {what}")
    folder = base / Path(path).expanduser()
    if folder.is_file():
        files = [folder]
    elif folder.is_dir():
        files = sorted(
            (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()),
            key=lambda file: file.relative_to(folder).as_posix(),
        )
    else:
        raise DataError(f"{folder.resolve()}: no such folder; `path` is to name a folder of {what}, or one file")
    if not files:
        raise DataError(f"{folder}: holds no audio file; expected {what} ({', '.join(sorted(SUFFIXES))})")
    faults = Faults()
    with ThreadPoolExecutor(8) as pool:
        headers = list(pool.map(_header, files))
    found: list[Sound] = []
    for file, header in zip(files, headers, strict=True):
        if isinstance(header, MediaError):
            faults.add(what, str(header), order=len(found))
        else:
            found.append(Sound(file, header))
    faults.raise_if_any()
    return tuple(found)


def _header(file: Path) -> AudioInfo | MediaError:
    try:
        return audio_info(file)
    except MediaError as exc:
        return exc
