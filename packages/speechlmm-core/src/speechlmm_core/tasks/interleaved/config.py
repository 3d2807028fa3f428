"""Text of which spans are heard instead of read. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.draw import derive
from speechlmm_core.data.draw import draw as place_draw
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.task import TaskConfig
from speechlmm_core.tasks.interleaved.spans import Span, Word, cut, words_of

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example

Content = list[dict[str, Any]]
NumWords = Annotated[int, Field(ge=1)]


class InterleavedTaskConfig(TaskConfig):
    """Next-token prediction over a text in which spans of words are replaced by their audio.

    The words and their times are `fields.words`, `{text, start, end}` (`word` for `text` will do) in seconds of the
    medium's file, as the medium's own `start` and `end` are. Spans are drawn for each example; no chat template stands
    around them, and all that is text is learnt. Where the model is asked, it goes on after the last span that is heard.
    """

    type: Literal["interleaved"] = "interleaved"
    min_words: NumWords = 5
    """Words of a span at least."""
    max_words: NumWords = 15
    """Words of a span at most."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_words < self.min_words:
            raise ValueError(f"max_words {self.max_words} is less than min_words {self.min_words}")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("rouge",)

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Example` without which it cannot be trained."""
        return ("media", "fields.words")

    def prompts(self, language: str = "en") -> list[str]:
        """None: nothing is asked."""
        return []

    def check(self, example: Example) -> str | None:
        """What an example lacks for this task, or None when it has everything."""
        if len(example.media) != 1:
            return f"task {self.type!r} needs one medium (`audio`), got {', '.join(example.media) or 'none'}"
        words = words_of(example.fields.get("words"))
        if isinstance(words, str):
            return f"task {self.type!r}: {words}"
        begin, end = _bounds(next(iter(example.media.values())))
        outside = next((word for word in words if _is_outside(word, begin, end)), None)
        if outside is not None:
            return (
                f"task {self.type!r} needs `fields.words` within the medium, in seconds of its file, got "
                f"{outside.text!r} at {outside.start:g} s for a medium from {begin:g} to {end:g} s"
            )
        return None

    def messages(
        self, example: Example, *, draw: int = 0, with_answer: bool = True, shots: Sequence[Example] = ()
    ) -> list[Message]:
        """The text with its spans, as the only message.

        Args:
            example: The example.
            draw: Decides which words are heard.
            with_answer: Whether the text is whole, or ends with the last span that is heard.
            shots: Without meaning here.

        Raises:
            DataError: The example lacks its audio, or words with times.
        """
        spans = self._spans(example, draw)
        if not with_answer:
            spans, _ = _halves(spans)
            if not spans:
                raise DataError(f"example {example.id!r}: task {self.type!r} has one word, which nothing comes before")
        return [self._message(example, spans)]

    def draws(self, example: Example) -> Sequence[int]:
        """None: `longest` bounds what an example takes."""
        return ()

    def longest(self, example: Example) -> list[list[Message]]:
        """All the words as text, and all of the audio besides: once in one piece, and once in the shortest spans."""
        (whole,) = self._spans(example, None)
        words, size = whole.words, self.min_words
        starts = range(0, max(len(words) - size, 0) + 1, size)
        ends = [*(words[start].start for start in starts[1:]), words[-1].end]
        # Each piece lasts until the next: together they hold the silences, too, that a longer span would.
        pieces = [
            Span((replace(words[start], end=end),), True)
            for start, end in zip(starts, ends, strict=True)
            if end > words[start].start
        ]
        heard = [Span(words, True)] if words[-1].end > words[0].start else []
        return [[self._message(example, [whole, *heard])], [self._message(example, [whole, *pieces])]]

    def references(self, example: Example) -> tuple[str, ...]:
        """How the text goes on after the last span that is heard, as it is cut for evaluation."""
        _, rest = _halves(self._spans(example, 0))
        return (" ".join(span.text for span in rest),)

    def _spans(self, example: Example, draw: int | None) -> list[Span]:
        fault = self.check(example)
        words = words_of(example.fields.get("words"))
        if fault or isinstance(words, str):
            raise DataError(f"example {example.id!r}: {fault}")
        if draw is None:
            return [Span(tuple(words), False)]
        number, choices = derive(draw, "spans"), self.max_words - self.min_words + 1
        sizes = (self.min_words + place_draw(number, 1, place, "span") % choices for place in count())
        is_heard = place_draw(number, 0, 0, "first span") % 2 == 1
        return cut(words, sizes, is_heard=is_heard, shortest=self.min_words)

    def _message(self, example: Example, spans: Sequence[Span]) -> Message:
        ((name, medium),) = example.media.items()
        begin, end = _bounds(medium)
        content: Content = []
        for number, span in enumerate(spans):
            if not span.is_heard:
                content.append({"type": "text", "text": f"{' ' if number else ''}{span.text}"})
                continue
            first, last = max(begin, span.words[0].start), min(span.words[-1].end, end)
            content.append({**medium, "type": name, "start": first, "end": last, "transcript": span.text})
        return Message(role="text", content=content)


def _bounds(medium: Mapping[str, Any]) -> tuple[float, float]:
    """Where a medium starts and ends in its file, in seconds."""
    start, end = medium.get("start"), medium.get("end")
    return float(start or 0.0), inf if end is None else float(end)


def _is_outside(word: Word, begin: float, end: float) -> bool:
    """Whether nothing of a word is in the medium; aligners give words without length, also where the medium starts."""
    if word.start == word.end:
        return not begin <= word.start <= end
    return word.start >= end or word.end <= begin


def _halves(spans: list[Span]) -> tuple[list[Span], list[Span]]:
    """What is given, and what is to follow: up to the last span that is heard and has text after it, else half."""
    heard = [i for i, span in enumerate(spans[:-1]) if span.is_heard]
    if heard:
        return spans[: heard[-1] + 1], spans[heard[-1] + 1 :]
    words = spans[0].words
    middle = len(words) // 2
    return [Span(words[:middle], False)] if middle else [], [Span(words[middle:], False), *spans[1:]]
