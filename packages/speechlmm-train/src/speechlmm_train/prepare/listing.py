"""Lists the examples of a part: their lines, their texts and what identifies their media. No medium is opened.

Shapes: N rows, M media.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import Examples
from speechlmm_core.data.index.layout import NO_PLACE
from speechlmm_core.data.index.rows import answer_of, encode_example, media_of
from speechlmm_core.data.spec.task_check import UNUSABLE, TaskCheck
from speechlmm_core.errors import DataError, MediaError
from speechlmm_core.media.source import MediaSource, item_source

BLOCK = 4096
THREADS = 8
SAMPLED = 64
"""Rows whose paths are looked at for what they have in common."""
SPOKEN_TASKS = frozenset({"asr", "vsr", "st"})
"""Tasks whose answer is what is spoken, or as long."""
ONE_ANSWER_TASKS = frozenset({"asr", "vsr"})
"""Tasks with one right answer: the same medium with another one is a duplicate as well."""
_PLACE = re.compile(r"(.*):(\d{1,9})", re.DOTALL)
KINDS = {"audio": 0, "video": 1}
OTHER_KIND = 2


@dataclass
class Listing:
    """The rows of a part."""

    count: int
    """Rows N."""
    words: NDArray[np.int32]
    """(N,) words of the answer."""
    characters: NDArray[np.int32]
    """(N,) characters of the answer, without white space."""
    spoken_words: NDArray[np.int32]
    """(N,) words of what is spoken; -1 where that is not known."""
    spoken_characters: NDArray[np.int32]
    """(N,) characters of it, likewise."""
    quality: NDArray[np.float64]
    """(N,) the corpus' own score."""
    empty: NDArray[np.bool_]
    """(N,) whether the answer has no characters."""
    questions: NDArray[np.uint64]
    """(N,) hash of everything that tells a row from another with the same media."""
    place_files: NDArray[np.uint16]
    """(N,) file of the place, in `places`."""
    place_numbers: NDArray[np.uint32]
    """(N,) line of the place."""
    lines: NDArray[np.int64]
    """(N + 1,) where the lines begin."""
    media_starts: NDArray[np.int64]
    """(N + 1,) where the media of a row begin."""
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """(M,) what identifies a file, its state and the part of it."""
    measured: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """(M,) the same with the segment."""
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(M,) bytes of the files."""
    times: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(M,) times of the files in nanoseconds."""
    segments: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    """(M, 2) start and end in seconds; NaN where there is none."""
    kinds: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    """(M,) audio, video, or another."""
    places: tuple[str, ...] = ()
    """Files of the places."""
    lacks: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    """(N,) number of what the row lacks for its task, from 1 on in `check`; 0 for nothing."""
    prompt_kinds: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    """(N,) number of the kind of example that the row is, as to prompts."""
    check: TaskCheck | None = None
    """What told these; None where there is nothing to tell."""
    row_faults: dict[int, str] = field(default_factory=dict[int, str])
    """Rows of which no example can be made."""
    media_faults: dict[int, str] = field(default_factory=dict[int, str])
    """Media whose file is not there."""
    root: str = ""
    """Beginning of paths that the lines leave out."""
    stored: bool = True
    """Whether every example can be written as a line."""


def list_rows(
    examples: Examples,
    file: BinaryIO,
    *,
    count: int,
    task: str | None,
    progress: Callable[[int], object],
    check: TaskCheck | None = None,
) -> Listing:
    """Lists rows, and writes their lines.

    Args:
        examples: The part as its reader reads it.
        file: Where the lines are written.
        count: How many rows are listed, from the first on.
        task: The task's name where the specification gives one.
        progress: Called with the number of rows that were listed.
        check: Tells what rows lack for their task.

    Raises:
        OSError: The lines cannot be written.
    """
    return _Lister(examples, file, count, task, check).run(progress)


class _Lister:
    def __init__(
        self, examples: Examples, file: BinaryIO, count: int, task: str | None, check: TaskCheck | None
    ) -> None:
        self.examples, self.file, self.task = examples, file, task
        self.check = check if check is not None and check.needed else None
        self.found = Listing(
            count,
            words=np.zeros(count, np.int32),
            characters=np.zeros(count, np.int32),
            spoken_words=np.full(count, -1, np.int32),
            spoken_characters=np.full(count, -1, np.int32),
            quality=np.full(count, np.nan),
            empty=np.zeros(count, np.bool_),
            questions=np.zeros(count, np.uint64),
            place_files=np.full(count, NO_PLACE, np.uint16),
            place_numbers=np.zeros(count, np.uint32),
            lines=np.zeros(count + 1, np.int64),
            media_starts=np.zeros(count + 1, np.int64),
            lacks=np.zeros(count, np.uint8),
            prompt_kinds=np.zeros(count, np.uint16),
            check=self.check,
        )
        self.places: dict[str, int] = {}
        self.keys, self.measured = array("Q"), array("Q")
        self.sizes, self.times = array("q"), array("q")
        self.segments, self.kinds = array("d"), array("B")

    def run(self, progress: Callable[[int], object]) -> Listing:
        found = self.found
        found.root = self.root()
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, found.count, BLOCK):
                rows = range(start, min(start + BLOCK, found.count))
                made = [self.row(row) for row in rows]
                states = self.states(made, pool)
                for row, example in zip(rows, made, strict=True):
                    items = media_of(example)
                    for item in items:
                        self.medium(item, states)
                    found.media_starts[row + 1] = len(self.keys)
                progress(len(made))
        found.keys, found.measured = np.array(self.keys, np.uint64), np.array(self.measured, np.uint64)
        found.sizes, found.times = np.array(self.sizes, np.int64), np.array(self.times, np.int64)
        found.segments = np.array(self.segments, np.float64).reshape(-1, 2)
        found.kinds = np.array(self.kinds, np.uint8)
        found.places = tuple(self.places)
        return found

    def root(self) -> str:
        """The folder that the files of some rows have in common, with a slash."""
        folders: set[str] = set()
        for row in np.unique(np.linspace(0, self.found.count - 1, SAMPLED).astype(np.int64)):
            with suppress(DataError):
                items = media_of(self.examples.example(int(row)))
                folders |= {os.path.dirname(one["path"]) for one in items if isinstance(one.get("path"), str)}
        with suppress(ValueError):  # none, or absolute and relative ones
            return os.path.commonpath(folders).rstrip("/") + "/" if all(folders) else ""
        return ""

    def row(self, row: int) -> Example:
        """Notes what a row's texts say, and writes its line."""
        found = self.found
        self.place(row)
        try:
            example = self.examples.example(row)
        except DataError as exc:
            found.row_faults[row] = " ".join(str(exc).split())
            example = Example(id=str(row + 1))
            if self.check is not None:
                found.lacks[row] = self.check.number(UNUSABLE)
        else:
            if self.check is not None:
                found.lacks[row], found.prompt_kinds[row] = self.check.numbers(example)
        line = b"\n"
        try:
            line = encode_example(example, found.root)
        except (TypeError, ValueError, RecursionError):
            found.stored = False
        self.file.write(line)
        found.lines[row + 1] = found.lines[row] + len(line)
        answer = answer_of(example)
        task = self.task or example.task
        if answer is not None:
            found.words[row] = len(answer.split())
            found.characters[row] = _num_characters(answer)
            found.empty[row] = not found.characters[row]
        spoken = _spoken(example, task)
        if spoken is not None:
            found.spoken_words[row], found.spoken_characters[row] = len(spoken.split()), _num_characters(spoken)
        if example.quality is not None:
            found.quality[row] = example.quality
        found.questions[row] = _question(example, task)
        return example

    def place(self, row: int) -> None:
        match = _PLACE.fullmatch(self.examples.place(row))
        if match:
            number = self.places.setdefault(match[1], len(self.places))
            if number < NO_PLACE:
                self.found.place_files[row], self.found.place_numbers[row] = number, int(match[2])

    def states(self, made: Sequence[Example], pool: ThreadPoolExecutor) -> dict[str, tuple[int, int] | str]:
        """Size and time of the files of some examples, or why they cannot be told."""
        paths = {str(item["path"]) for one in made for item in media_of(one) if item.get("path") is not None}
        ordered = sorted(paths)
        pieces = [ordered[at : at + 64] for at in range(0, len(ordered), 64)]
        return dict(zip(ordered, (state for piece in pool.map(_states, pieces) for state in piece), strict=True))

    def medium(self, item: dict[str, Any], states: dict[str, tuple[int, int] | str]) -> None:
        kind = str(item.get("type", "audio"))
        size = time = key = 0
        try:
            source = item_source(item, kind)
            if source is None or source.path is None:
                data = np.ascontiguousarray(item["array"]).tobytes() if source is None else source.data or b""
                size, key = len(data), _hash(kind.encode() + b"\0" + data)
            else:
                state = states[str(item["path"])]
                if isinstance(state, str):
                    raise MediaError(f"{item['path']}: {state}")
                (size, time), key = state, _key(kind, source, *state)
        except (MediaError, ValueError, TypeError) as exc:
            self.found.media_faults[len(self.keys)] = " ".join(str(exc).split())
        start, end = _second(item.get("start")), _second(item.get("end"))
        self.keys.append(key)
        self.measured.append(_hash(f"{key}\0{start}\0{end}".encode()) | 1)
        self.sizes.append(size)
        self.times.append(time)
        self.segments.extend((start, end))
        self.kinds.append(KINDS.get(kind, OTHER_KIND))


def _states(paths: Sequence[str]) -> list[tuple[int, int] | str]:
    found: list[tuple[int, int] | str] = []
    for path in paths:
        try:
            status = os.stat(os.path.expanduser(path) if path.startswith("~") else path)
            found.append((status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            found.append("no such file; check the path")
        except (OSError, ValueError) as exc:
            found.append(f"cannot be read: {getattr(exc, 'strerror', None) or exc}")
    return found


def _key(kind: str, source: MediaSource, size: int, time: int) -> int:
    path = os.path.abspath(source.path or "")
    text = f"{kind}\0{path}\0{size}\0{time}\0{source.offset}\0{source.size}\0{source.row}\0{source.column}"
    return _hash(text.encode("utf-8", "surrogatepass"))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _second(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _num_characters(text: str) -> int:
    return len("".join(text.split()))


def _spoken(example: Example, task: str) -> str | None:
    """What is spoken, as far as the corpus tells."""
    if example.transcript is not None:
        return example.transcript
    said = [item["transcript"] for item in media_of(example) if item.get("transcript") is not None]
    if said:
        return " ".join(map(str, said))
    return example.text if task in SPOKEN_TASKS and example.media else None


def _question(example: Example, task: str) -> int:
    """Hash of what is asked and, where several answers are right, answered."""
    if example.messages is not None:
        content: Any = [
            [one.role, [item["text"] if item["type"] == "text" else item["type"] for item in one.content]]
            for one in example.messages
        ]
    else:
        answer = None if example.media and task in ONE_ANSWER_TASKS else example.text
        content = [example.instruction, example.source_text, answer, sorted(example.media)]
    # What an answer is made of (an intent, slots) may stand in fields of the corpus' own.
    fields = None if task in ONE_ANSWER_TASKS else example.fields
    parts = [task, example.source_language, example.target_language, content, fields]
    try:
        text = json.dumps(parts, ensure_ascii=False, default=repr)
    except (TypeError, ValueError, RecursionError):  # odd keys, or what holds itself
        text = repr(parts)
    return _hash(text.encode("utf-8", "surrogatepass"))
