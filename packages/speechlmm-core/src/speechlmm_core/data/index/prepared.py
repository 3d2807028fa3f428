"""The examples of a prepared part: columns mapped into memory, and lines that are read when asked for.

Nothing is parsed on opening. An example is a read of its line, and a look at the size and time of its media: where
these differ from what was prepared, their bytes are compared, so that a corpus that was copied or touched is still the
same, and one that was changed is not used by mistake. Imports no torch.

Shapes: N rows that are used.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import Examples, as_examples
from speechlmm_core.data.index.header import IndexHeader, damaged
from speechlmm_core.data.index.layout import (
    EXAMPLES,
    HASHES,
    IN_ORDER,
    MEDIA,
    NO_PLACE,
    SORTED,
    STARTS,
    Status,
    redo_hint,
)
from speechlmm_core.data.index.rows import decode_example, media_of
from speechlmm_core.data.index.state import content_hash
from speechlmm_core.errors import DataError, MediaError
from speechlmm_core.interfaces.dataset import DatasetConfig, Selection
from speechlmm_core.media.source import MediaSource, file_source

SEEN = 4096
"""Files whose state is remembered to be unchanged; the members of a container share one."""


class PreparedExamples(Examples):
    """The rows of a prepared part that are not in quarantine.

    Args:
        folder: The part's folder.
        reader: What the part was read with; makes the examples where the index does not hold them.
        base: Folder where the reader's paths start.
        selection: What is selected.
        header: The part's header, where it was read already.

    Raises:
        DataError: The index is damaged.
    """

    def __init__(
        self,
        folder: Path,
        reader: DatasetConfig,
        base: Path,
        selection: Selection,
        *,
        header: IndexHeader | None = None,
    ) -> None:
        self.folder = folder
        self.header = header or IndexHeader.read(folder)
        self._reader = (reader, base, selection)
        self._columns: dict[str, NDArray[Any]] = {}
        self._handle: int | None = None
        self._made: Examples | None = None
        self._seen: set[tuple[str, int, int]] = set()
        self._unchecked = 0
        self._lock = threading.Lock()
        self._map()

    def __len__(self) -> int:
        return self.header.kept

    @property
    def seconds(self) -> NDArray[np.float64]:
        """(N,) seconds of media."""
        return self.column("seconds")

    @property
    def num_words(self) -> NDArray[np.int32]:
        """(N,) words of the answer, as white space parts them."""
        return self.column("words")

    @property
    def num_characters(self) -> NDArray[np.int32]:
        """(N,) characters of the answer, without white space."""
        return self.column("characters")

    @property
    def quality(self) -> NDArray[np.float64]:
        """(N,) the corpus' own score; NaN where it gives none."""
        return self.column("quality")

    @property
    def rows(self) -> NDArray[np.uint32]:
        """(N,) numbers of the rows in the corpus, ascending."""
        return self.column("rows")

    @property
    def total(self) -> int:
        """Rows of the corpus, those in quarantine included."""
        return self.header.total

    @property
    def quarantined(self) -> Mapping[str, int]:
        """How many rows are left out, by reason."""
        return self.header.quarantined

    def headers(self, index: int) -> list[tuple[int, int]]:
        """Number of samples and sampling rate of an example's media: of the files, not of segments.

        In the order of `speechlmm_core.data.index.rows.media_of`; zeros for what only an encoder can tell.
        """
        first, last = self._media(index)
        counts, rates = self.column("num_samples")[first:last], self.column("sampling_rates")[first:last]
        return [(int(count), int(rate)) for count, rate in zip(counts, rates, strict=True)]

    def example(self, index: int) -> Example:
        """The example of a number.

        Raises:
            DataError: One of its files has changed since it was prepared, the index is damaged, or the row, which a
                set for evaluation keeps, is none that an example can be made of.
        """
        row, status = int(self.rows[index]), int(self.column("status")[index])
        if not self.header.stored or status == Status.RECORD:
            return self._backing().example(row)
        starts = self.column("lines")
        first, last = int(starts[row]), int(starts[row + 1])
        # No shared position: safe in threads and forks.
        line = os.pread(self._open(), last - first, first) if 0 <= first < last else b""
        try:
            example = decode_example(line, self.header.root)
        except (ValueError, TypeError, AttributeError, RecursionError) as exc:
            raise damaged(self.folder / EXAMPLES, f"row {row} is no example", self.header.spec) from exc
        # Of media that could not be read there is nothing to compare with; whoever loads them says what is wrong.
        if not self._unchecked and status != Status.UNREADABLE and (example.media or example.messages):
            self._check_media(index, example)
        return example

    def place(self, index: int) -> str:
        """Where an example stands in the corpus, as messages name it."""
        row = int(self.rows[index])
        file, number = int(self.column("place_files")[row]), int(self.column("place_numbers")[row])
        if file == NO_PLACE or file >= len(self.header.places):
            return f"{self.header.name}: example {row + 1}"
        return f"{self.header.places[file]}:{number}"

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """Examples are made without a look at their files; for passes over all of them."""
        with self._lock:
            self._unchecked += 1
        try:
            yield
        finally:
            with self._lock:
                self._unchecked -= 1

    def check_sample(self, count: int = 16) -> None:
        """Looks at the files of a few examples, spread over all.

        Raises:
            DataError: One has changed.
        """
        if self.header.stored and len(self):
            for index in np.unique(np.linspace(0, len(self) - 1, count).astype(np.int64)):
                if int(self.column("status")[index]) != Status.RECORD:
                    self.example(int(index))

    def column(self, name: str) -> NDArray[Any]:
        """A column by its name in `layout`; of the sorted ones, the rows that are used.

        Raises:
            DataError: Its file is damaged.
        """
        if name not in self._columns:
            raise damaged(self.folder / f"{name}.npy", "no such column", self.header.spec)
        return self._columns[name]

    def _map(self) -> None:
        """Maps all files at once, so that they stay what they are when the part is prepared again meanwhile."""
        for name in (*SORTED, *IN_ORDER, *STARTS, *MEDIA, HASHES):
            path = self.folder / f"{name}.npy"
            if path.name not in self.header.files:
                continue
            try:
                values = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as exc:
                raise damaged(path, str(exc).splitlines()[0], self.header.spec) from exc
            self._columns[name] = values[: self.header.kept] if name in SORTED else values
        self._open()
        if IndexHeader.stamp_in(self.folder) != self.header.stamp:
            raise DataError(f"{self.folder}: was prepared anew while it was opened; start again")

    def _media(self, index: int) -> tuple[int, int]:
        row, starts = int(self.rows[index]), self.column("media_starts")
        return int(starts[row]), int(starts[row + 1])

    def _check_media(self, index: int, example: Example) -> None:
        first, last = self._media(index)
        items = media_of(example)
        if len(items) != last - first:
            raise damaged(self.folder / EXAMPLES, f"row {index} has other media", self.header.spec)
        sizes, times = self.column("sizes")[first:last], self.column("times")[first:last]
        for number, item in enumerate(items):
            path = item.get("path")
            if isinstance(path, str):
                state = (path, int(sizes[number]), int(times[number]))
                if state not in self._seen:
                    self._check_file(item, state, self.column(HASHES)[first + number].tobytes())
                    if len(self._seen) >= SEEN:
                        self._seen.clear()
                    self._seen.add(state)

    def _check_file(self, item: Mapping[str, Any], state: tuple[str, int, int], expected: bytes) -> None:
        path, size, time = state
        try:
            status = os.stat(os.path.expanduser(path) if path.startswith("~") else path)
            if (status.st_size, status.st_mtime_ns) == (size, time):
                return
            same = status.st_size == size and content_hash(file_source(item) or MediaSource(Path(path))) == expected
            why = "has changed since it was prepared"
        except FileNotFoundError:
            same, why = False, "does not exist any more"
        except (OSError, ValueError, MediaError) as exc:
            same, why = False, f"cannot be read: {getattr(exc, 'strerror', None) or exc}"
        if not same:
            raise DataError(f"{path} {why}; {redo_hint(self.header.spec)} (only what is new is read)")

    def _backing(self) -> Examples:
        if self._made is None:
            reader, base, selection = self._reader
            self._made = as_examples(reader.read(base, selection))
            if len(self._made) < self.header.total:
                raise DataError(
                    f"{self.header.name}: {len(self._made)} rows, {self.header.total} when it was prepared; "
                    f"{redo_hint(self.header.spec)}"
                )
        return self._made

    def _open(self) -> int:
        if self._handle is None:
            path = self.folder / EXAMPLES
            try:
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as exc:
                raise damaged(path, exc.strerror or str(exc), self.header.spec) from exc
            weakref.finalize(self, os.close, handle)
            self._handle = handle
        return self._handle

    def __getstate__(self) -> dict[str, Any]:
        dropped = {"_columns": {}, "_handle": None, "_made": None, "_lock": None, "_unchecked": 0, "_seen": set()}
        return {**self.__dict__, **dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        if IndexHeader.read(self.folder).stamp != self.header.stamp:
            raise DataError(f"{self.folder}: was prepared anew while it was in use; start again")
        self._map()
