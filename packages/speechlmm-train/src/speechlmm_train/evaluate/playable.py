"""Media of predictions as a web page plays them: sound as FLAC in the page, videos as files beside it.

Imports no torch.
"""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

SAMPLING_RATE = 16_000
LONGEST_S = 60.0
"""Seconds of a sound that the page holds."""
LARGEST_VIDEO = 50 << 20
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv"})
FOLDER = "media"
"""Folder beside the page."""


class Playable(NamedTuple):
    """A medium of the page."""

    kind: str
    """`audio`, `video`, or `note` for one that cannot be played."""
    source: str
    """Where it is: a data URI or a relative path; for a note, its text."""


def playable(item: Mapping[str, Any], folder: Path) -> Playable:
    """A content item as something to be played; never fails.

    Args:
        item: The content item.
        folder: The page's folder, for videos.
    """
    kind = str(item.get("type", "audio"))
    try:
        return _video(item, folder) if "video" in kind else _audio(item)
    except Exception as exc:  # a row may name anything, and a page must come of it
        return Playable("note", f"{kind} cannot be played: {' '.join(str(exc).split())}")


def _audio(item: Mapping[str, Any]) -> Playable:
    import soundfile

    from speechlmm_core.media.audio import load_audio_item

    start = float(item.get("start") or 0.0)
    end = item.get("end")
    shortened = {**item, "type": "audio"}
    if end is not None and float(end) - start > LONGEST_S:
        shortened["end"] = start + LONGEST_S
    samples = load_audio_item(shortened, SAMPLING_RATE).values[: int(LONGEST_S * SAMPLING_RATE)].numpy()
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return Playable("audio", f"data:audio/flac;base64,{base64.b64encode(buffer.getvalue()).decode()}")


def _video(item: Mapping[str, Any], folder: Path) -> Playable:
    path = Path(str(item["path"])) if "path" in item else None
    if path is None or "offset" in item or "row" in item:
        return Playable("note", "a video inside a container is not shown")
    if path.suffix.lower() not in VIDEO_SUFFIXES or not _has_pictures(path):
        return Playable("note", f"{str(path)!r} is no video")
    if path.stat().st_size > LARGEST_VIDEO:
        return Playable("note", f"{str(path)!r} is too large to be shown")
    part = [item.get("start"), item.get("end")]
    fragment = "" if part == [None, None] else f"#t={part[0] or 0:g}{'' if part[1] is None else f',{part[1]:g}'}"
    name = f"{hashlib.sha256(str(path).encode()).hexdigest()[:12]}{path.suffix}"
    (folder / FOLDER).mkdir(exist_ok=True)
    if not (folder / FOLDER / name).exists():
        shutil.copyfile(path, folder / FOLDER / name)
    return Playable("video", f"{FOLDER}/{name}{fragment}")


def _has_pictures(path: Path) -> bool:
    import av

    with av.open(str(path)) as file:
        return bool(file.streams.video)
