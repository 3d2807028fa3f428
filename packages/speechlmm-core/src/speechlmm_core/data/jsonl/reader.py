"""Opens a JSONL manifest as a random-access sequence of examples. Imports no torch.

Every line is checked once, when the manifest is opened; what stays in memory is 12 bytes a line (where it starts and
its number), and an example is made when it is asked for.
"""

from __future__ import annotations

import os
import stat
import weakref
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from speechlmm_core.data.chats import lack_of
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import Examples
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.jsonl.line import PLAIN, LineFaultsError, LineForm, media_items, parse_line
from speechlmm_core.data.text_lines import check_regular, each_line
from speechlmm_core.errors import DataError, SpeechLMMError
from speechlmm_core.interfaces.task import TaskConfig, get_task

BLOCK = 8192
THREADS = 8


class JsonlExamples(Examples):
    """The examples of a manifest.

    Args:
        path: The manifest.
        check_media: Whether a missing media file is a fault (training), or left to whoever reads it (inference).
        check_task: Whether an example must have what its task needs for training.
        form: What holds for all lines.

    Raises:
        DataError: The manifest cannot be read or has no lines, or lines are wrong: all are counted, the first listed.
    """

    def __init__(
        self, path: str | Path, *, check_media: bool = True, check_task: bool = True, form: LineForm = PLAIN
    ) -> None:
        self.path = Path(path)
        self.form = form
        self._base = str(self.path.parent.absolute())
        self._starts = array("Q")
        self._numbers = array("I")
        self._handle: int | None = None
        scan = _Scan(str(path), self._base, form, check_media=check_media, check_task=check_task)
        try:
            check_regular(self.path)
            with self.path.open("rb") as file:
                self._stamp = _stamp(file.fileno())
                self._size = self._stamp[0]
                scan.run(self._lines(file))
        except DataError:
            raise
        except (OSError, ValueError) as exc:
            said = getattr(exc, "strerror", None) or exc
            reason = "it does not exist" if isinstance(exc, FileNotFoundError) else said
            raise DataError(f"cannot read the manifest {str(path)!r}: {reason}") from exc
        scan.faults.raise_if_any()
        if not self._starts:
            raise DataError(f"the manifest {str(path)!r} has no lines; it needs one JSON object a line")

    def _lines(self, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
        start = 0
        for number, line in enumerate(each_line(file, str(self.path)), 1):
            skip = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0  # a byte-order mark
            if line[skip:].strip():
                self._starts.append(start + skip)
                self._numbers.append(number)
                yield number, line[skip:]
            start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def example(self, index: int) -> Example:
        """The example of a number.

        Raises:
            DataError: The manifest was changed after it was opened.
        """
        at = index
        start = self._starts[at]
        end = self._starts[at + 1] if at + 1 < len(self) else self._size
        line = os.pread(self._open(), end - start, start)  # no shared position: safe in threads and forks
        try:
            return parse_line(line.split(b"\n", 1)[0], self._numbers[at], self._base, self.form)
        except LineFaultsError as exc:
            raise DataError(f"{self.place(at)}: {exc}; has the manifest been changed?") from exc

    def place(self, index: int) -> str:
        """The file and line of an example, as messages name it."""
        return f"{self.path}:{self._numbers[index]}"

    def _open(self) -> int:
        if self._handle is None:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, handle)
            if _stamp(handle) != self._stamp:
                raise DataError(f"the manifest {str(self.path)!r} was changed after it was opened; start again")
            self._handle = handle
        return self._handle

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}


class _Scan:
    """One pass over the lines that checks them, the media files block by block in threads."""

    def __init__(self, name: str, base: str, form: LineForm, *, check_media: bool, check_task: bool) -> None:
        self.name, self.base, self.form, self.check_media, self.check_task = name, base, form, check_media, check_task
        self.faults = Faults()
        self.tasks: dict[str, TaskConfig | str] = {}

    def run(self, lines: Iterator[tuple[int, bytes]]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            paths: list[tuple[int, str]] = []
            for number, line in lines:
                try:
                    example = parse_line(line, number, self.base, self.form)
                    items = media_items(example)
                    lack = self.lack(example) if self.check_task else None
                    faults = [lack] if lack else []
                except LineFaultsError as exc:
                    faults, items = exc.faults, exc.items
                for fault in faults:
                    self.fault(number, fault)
                if self.check_media:
                    paths += [(number, item["path"]) for item in items]
                if len(paths) >= BLOCK:
                    self.media(paths, pool)
                    paths = []
            self.media(paths, pool)

    def fault(self, number: int, message: str) -> None:
        self.faults.add(f"{self.name}:{number}", message, order=number)

    def lack(self, example: Example) -> str | None:
        task = self.tasks.get(example.task)
        if task is None:
            try:
                task = get_task(example.task)
            except (SpeechLMMError, PydanticCustomError, ValidationError) as exc:
                task = str(exc)
            self.tasks[example.task] = task
        return task if isinstance(task, str) else lack_of(example, task)

    def media(self, paths: list[tuple[int, str]], pool: ThreadPoolExecutor) -> None:
        unique = list(dict.fromkeys(path for _, path in paths))
        pieces = [unique[i : i + 256] for i in range(0, len(unique), 256)]
        bad = {path: fault for piece in pool.map(_missing, pieces) for path, fault in piece}
        for number, path in paths if bad else ():
            if path in bad:
                self.fault(number, bad[path])


def _missing(paths: list[str]) -> list[tuple[str, str]]:
    bad = []
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError) as exc:
            reason = "does not exist" if isinstance(exc, FileNotFoundError) else f"cannot be read ({exc})"
            bad.append((path, f"media file {path!r} {reason}"))
            continue
        if not stat.S_ISREG(status.st_mode):
            bad.append((path, f"{path!r} is not a media file but a folder or a device"))
        elif status.st_size == 0:
            bad.append((path, f"media file {path!r} is empty"))
    return bad


def _stamp(handle: int) -> tuple[int, int]:
    status = os.fstat(handle)
    return status.st_size, status.st_mtime_ns
