"""The files of a prepared index. Imports no torch.

An index is a folder for each part of a corpus (a reader, and what is selected of it), and a part is

- `header.json`: what was prepared and how, the state of the files that list the examples, sizes and checksums;
- `examples.jsonl`: the examples, a line each, in the corpus' order (empty where they hold bytes: the reader makes
  them then);
- a `.npy` file for each column below,
- `listed.npy` and `listed.txt`: the state of the files that list the examples, where they are more than 1,000.

Rows that are used come first, in the corpus' order, and those in quarantine after them: what is used is a plain slice
of a mapped file. Columns in the corpus' own order say so.

Shapes: N rows, M media.
"""

from __future__ import annotations

import hashlib
import re
from enum import IntEnum
from pathlib import Path

from speechlmm_core.data.shipped import home_of_corpora, is_shipped
from speechlmm_core.interfaces.dataset import DatasetConfig, Selection

VERSION = 1
"""Number of the format; an index of another is not read."""
HEADER, EXAMPLES = "header.json", "examples.jsonl"
SIZES_NAME = "sizes-"
"""Beginning of the names of files that hold what examples take of a model; they come and go."""
HASH_BYTES = 16
COMMAND = "speechlmm-train prepare"


class Status(IntEnum):
    """What was found of a row; all but `OK` are reasons for quarantine."""

    OK = 0
    RECORD = 1
    UNREADABLE = 2
    SEGMENT = 3
    TOO_LONG = 4
    SILENT = 5
    EMPTY_TEXT = 6
    WORDS_PER_MINUTE = 7
    LONG_TRANSCRIPT = 8
    DUPLICATE = 9


REASONS: dict[Status, str] = {
    Status.RECORD: "unusable record",
    Status.UNREADABLE: "unreadable",
    Status.SEGMENT: "no such segment",
    Status.TOO_LONG: "too long",
    Status.SILENT: "silent",
    Status.EMPTY_TEXT: "empty text",
    Status.WORDS_PER_MINUTE: "too many words per minute",
    Status.LONG_TRANSCRIPT: "transcript longer than the frames allow",
    Status.DUPLICATE: "duplicate",
}
"""The reasons as messages and reports name them."""
UNMEASURED = (Status.RECORD, Status.UNREADABLE, Status.SEGMENT)
"""Reasons why a row's media have no length."""

SORTED = {
    "seconds": "<f8",
    "words": "<i4",
    "characters": "<i4",
    "quality": "<f8",
    "status": "|u1",
    "lacks": "|u1",
    "kinds": "<u2",
    "rows": "<u4",
}
"""(N,) columns, used rows first: seconds of media, words and characters of the answer, the corpus' score (NaN for
none), `Status`, what the row lacks for its task (0: nothing, else from 1 on in the header's `lacks`), which rows get
their prompts from the same place (a number for each), and the row's number in the corpus."""
IN_ORDER = {"place_files": "<u2", "place_numbers": "<u4"}
"""(N,) columns in the corpus' order: which of the header's files a row stands in, and on which line."""
STARTS = {"lines": "<i8", "media_starts": "<u4"}
"""(N + 1,) in the corpus' order: where a row's line begins in `examples.jsonl`, and its media in the columns below."""
MEDIA = {
    "num_samples": "<i8",
    "sampling_rates": "<i4",
    "sizes": "<i8",
    "times": "<i8",
    "keys": "<u8",
    "measured": "<u8",
    "peaks": "<f2",
    "clipped": "<f2",
}
"""(M,) columns: the medium's length and rate (of a video: microseconds and 1,000,000; 0 where only its encoder can
tell), size and time (ns) of its file, what identifies the file and the part of it that was measured, and by `full`
the greatest amplitude and the share of samples at full scale (else NaN)."""
HASHES = "hashes"
"""(M, 16) BLAKE2b of the medium's bytes."""

NO_PLACE = 0xFFFF


def index_dir_of(spec_path: Path) -> Path:
    """The folder where a specification is prepared unless another one is named: `x.index` beside `x.yaml`.

    What a package ships is prepared beside the corpora.
    """
    if is_shipped(spec_path):
        return home_of_corpora() / f"{spec_path.stem}.index"
    return spec_path.with_name(f"{spec_path.stem or spec_path.name}.index")


def part_digest(name: str, reader: DatasetConfig, base: Path, selection: Selection) -> str:
    """What a part is, short: its name, the reader, where its paths start, and what is selected."""
    chosen = (selection.partition, selection.source_language, selection.target_language, selection.task)
    text = "\0".join([name, type(reader).__qualname__, reader.model_dump_json(), str(base.resolve()), repr(chosen)])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def part_folder(index_dir: Path, name: str, digest: str) -> Path:
    """The folder of a part."""
    return index_dir / f"{part_slug(name)}-{digest}"


def is_part_folder(name: str) -> bool:
    """Whether a folder's name is one that `part_folder` gives."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*-[0-9a-f]{16}", name) is not None


def part_slug(name: str) -> str:
    """A part's name as it may stand in a folder's."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:80] or "part"


def redo_hint(spec: str | None) -> str:
    """What to do about an index that does not fit any more."""
    return f"run `{COMMAND} {spec or 'SPEC'}` again"
