"""Words and segments of one speaker in NITE XML. Imports no torch."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speechlmm_core.errors import DataError
from speechlmm_train.corpora.xml import read_xml

_RANGE = re.compile(r"#id\(([^)]*)\)(?:\.\.id\(([^)]*)\))?$")
_CLOSING = (".", ",", "?", "!", ";", ":", "'", "%")


@dataclass(frozen=True, slots=True)
class Word:
    """A word, or what stands between words."""

    text: str
    """How it is written; empty for what is no word, such as a cough."""
    start: float | None
    """Its start in seconds, where it has one."""
    end: float | None
    """Its end in seconds, where it has one."""
    joined: bool
    """Whether it belongs to the word before it, as punctuation does."""
    hyphen: bool
    """Whether the next word belongs to it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A turn, or a part of one."""

    id: str
    """Its name."""
    start: float
    """Its start in seconds."""
    end: float
    """Its end in seconds."""
    participant: str | None
    """Who speaks, where it says so."""
    words: Sequence[Word]
    """What is said."""


def read_words(path: str) -> dict[str, tuple[int, Word]]:
    """The words of a file by name, with their numbers.

    Raises:
        DataError: The file cannot be read.
    """
    found: dict[str, tuple[int, Word]] = {}
    for number, element in enumerate(read_xml(path)):
        text = (element.text or "").strip() if element.tag == "w" else ""
        kind = element.get("c", "")
        word = Word(
            text,
            _seconds(element.get("starttime")),
            _seconds(element.get("endtime")),
            joined=element.get("punc") == "true" or kind in ("HYPH", "APOSS") or text.startswith(_CLOSING),
            hyphen=kind == "HYPH",
        )
        found[element.get("nite:id", "")] = (number, word)
    return found


def read_segments(path: str, words: dict[str, tuple[int, Word]], *, start: str, end: str) -> list[Segment]:
    """The segments of a file.

    Args:
        path: The file.
        words: Words of the same speaker.
        start: Attribute with a segment's start.
        end: Attribute with a segment's end.

    Raises:
        DataError: The file cannot be read, or a segment has no times, or names words that do not exist.
    """
    order = [word for _, word in words.values()]
    found: list[Segment] = []
    for element in read_xml(path).iter("segment"):
        name = element.get("nite:id", "")
        times = _seconds(element.get(start)), _seconds(element.get(end))
        if times[0] is None or times[1] is None:
            raise DataError(f"{path}#{name}: a segment needs `{start}` and `{end}` in seconds")
        spoken: list[Word] = []
        for child in element.iter("nite:child"):
            first, last = _range(child.get("href", ""), words, f"{path}#{name}")
            spoken += order[first : last + 1]
        if times[1] > times[0]:
            found.append(Segment(name, times[0], times[1], element.get("participant"), spoken))
    return found


def join_words(words: Sequence[Word]) -> str:
    """The text of words, with punctuation at the word before it."""
    return " ".join("".join(word.text for word in group) for group in _joined(words))


def _joined(words: Sequence[Word]) -> list[list[Word]]:
    """Words that are written without spaces between."""
    groups: list[list[Word]] = []
    glued = False
    for word in words:
        if word.text:
            if groups and (glued or word.joined):
                groups[-1].append(word)
            else:
                groups.append([word])
            glued = word.hyphen
    return groups


def pack_words(words: Sequence[Word]) -> tuple[str, array[float]]:
    """Words with their times in a tenth of the memory of objects: a meeting corpus has a million.

    Punctuation is a part of the word before it, as in `join_words`; what has no time at all is left out.
    """
    texts: list[str] = []
    times = array("d")
    for group in _joined(words):
        starts = [word.start for word in group if word.start is not None]
        ends = [word.end for word in group if word.end is not None]
        if starts and ends:
            texts.append("".join(word.text for word in group))
            times.extend((starts[0], max(starts[0], ends[-1])))
    return "\0".join(texts), times


def with_words(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose packed words are objects again."""
    texts, times = row["words"]
    found = zip(texts.split("\0") if texts else (), times[::2], times[1::2], strict=True)
    return {**row, "words": [{"word": text, "start": start, "end": end} for text, start, end in found]}


def _range(href: str, words: dict[str, Any], place: str) -> tuple[int, int]:
    match = _RANGE.search(href)
    if not match:
        raise DataError(f"{place}: expected '<file>#id(<word>)..id(<word>)', got {href!r}")
    ends = match[1], match[2] or match[1]
    for name in ends:
        if name not in words:
            raise DataError(f"{place}: there is no word {name!r}")
    return words[ends[0]][0], words[ends[1]][0]


def _seconds(value: str | None) -> float | None:
    try:
        found = float(value) if value else math.nan
    except ValueError:
        return None
    return found if math.isfinite(found) else None
