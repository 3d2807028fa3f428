"""Subtitles as records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError

TIMES = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})\s*-->\s*(\d+):(\d\d):(\d\d)[,.](\d{1,3}).*")


class SubtitleRecords:
    """A record for each subtitle. All are kept in memory: make records when asked for where there may be millions."""

    columns: Sequence[str] = ("id", "recording", "start", "end", "text")

    def __init__(self, folder: Path, ending: str, partition: str | None) -> None:
        self.folder, self.partition = folder, partition
        self.sources = tuple(sorted(folder.rglob("*.srt")))
        """The files that say which records there are: `speechlmm-train prepare` notices when they change."""
        if not self.sources:
            raise DataError(f"{folder}: no subtitles (*.srt); check `path` and the partition's name")
        faults = Faults()  # collected, so that the user sees all of them at once
        self._rows: list[dict[str, Any]] = []
        self._places: list[str] = []
        for path in self.sources:
            try:
                for line, row in _subtitles(path, ending):
                    self._rows.append(row)
                    self._places.append(f"{path}:{line}")
            except DataError as exc:
                faults.extend(exc)
        faults.raise_if_any()

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, index: int) -> Mapping[str, Any]:
        """A subtitle."""
        return self._rows[index]

    def place(self, index: int) -> str:
        """File and line of a subtitle."""
        return self._places[index]

    def root(self, index: int) -> str:
        """Folder where relative paths of media start."""
        return str(self.folder.absolute())

    def constants(self, index: int) -> Mapping[str, str]:
        """What the layout tells."""
        return {} if self.partition is None else {"partition": self.partition}


def _subtitles(path: Path, ending: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The subtitles of a file with their lines: a number, the times, and lines of text up to an empty one."""
    recording = path.with_suffix(ending)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{path}: cannot be read: {exc}; save it as UTF-8") from exc
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        first = at + 1
        times = TIMES.fullmatch(lines[at + 1].strip()) if at + 1 < len(lines) else None
        if times is None:
            raise DataError(f"{path}:{first}: expected a subtitle's number and a line 00:00:01,000 --> 00:00:02,500")
        at += 2
        words: list[str] = []
        while at < len(lines) and lines[at].strip():
            words.append(lines[at].strip())
            at += 1
        number = lines[first - 1].strip()
        start, end = (_seconds(times.groups()[i : i + 4]) for i in (0, 4))
        yield (
            first,
            {
                "id": f"{path.stem}-{number}",
                "recording": str(recording.absolute()),
                "start": start,
                "end": end,
                "text": " ".join(words),
            },
        )


def _seconds(parts: tuple[str, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000
