"""Which words of a text are heard instead of read. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast


@dataclass(frozen=True)
class Word:
    """A word and when it is said, in seconds of the file."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Span:
    """Words in a row that are all read, or all heard."""

    words: tuple[Word, ...]
    is_heard: bool

    @property
    def text(self) -> str:
        """The words, with spaces between."""
        return " ".join(word.text for word in self.words)


def words_of(value: Any) -> list[Word] | str:
    """The words with their times, as `fields.words` gives them, or what is wrong with them."""
    if not isinstance(value, list | tuple) or not value:
        return f"`fields.words` must be a list of {{text, start, end}}, got {value!r:.80}"
    found: list[Word] = []
    for number, one in enumerate(cast("Sequence[Any]", value)):
        given = cast("Mapping[str, Any]", one) if isinstance(one, Mapping) else {}
        text, start, end = given.get("text", given.get("word")), _time(given.get("start")), _time(given.get("end"))
        if not isinstance(text, str) or start is None or end is None:
            return (
                f"`fields.words` must hold {{text, start, end}}, times in seconds, got {one!r:.80} as number {number}"
            )
        if not text.strip():
            continue
        if end < start or (found and start < found[-1].start):
            return f"`fields.words` must be in order of time, got {one!r:.80} as number {number}"
        found.append(Word(" ".join(text.split()), start, end))
    return found or "`fields.words` holds no word"


def cut(words: Sequence[Word], sizes: Iterable[int], *, is_heard: bool, shortest: int) -> list[Span]:
    """Cuts a text into spans that are read and heard by turns, at least one word of it being read.

    Args:
        words: The words.
        sizes: Words of each span in turn, without end.
        is_heard: Whether the first span is heard.
        shortest: Words that a span that is heard has at least; where fewer are left, they are read.
    """
    spans: list[Span] = []
    place = 0
    for size in sizes:
        left = len(words) - place
        if not left:
            break
        is_read_yet = any(not span.is_heard for span in spans)
        taken = min(size, left - 1 if is_heard and not is_read_yet else left)
        part = tuple(words[place : place + taken])
        heard = is_heard and taken >= shortest and part[-1].end > part[0].start
        if part and spans and spans[-1].is_heard == heard:
            spans[-1] = Span(spans[-1].words + part, heard)
        elif part:
            spans.append(Span(part, heard))
        place += taken
        is_heard = not is_heard
    return spans


def _time(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value >= 0 else None
