"""What a view of prepared examples (a subset, several in a row, with a task) rests on. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ConcatExamples, Examples
from speechlmm_core.data.index.prepared import PreparedExamples
from speechlmm_core.data.index.rows import media_of
from speechlmm_core.media.source import MediaSource, file_source

VIDEO_RATE = 1_000_000
"""Rate that stands for a video, whose samples only its encoder can tell."""


def prepared_in(examples: Sequence[Example]) -> list[PreparedExamples]:
    """All prepared parts that a view rests on."""
    if isinstance(examples, PreparedExamples):
        return [examples]
    if isinstance(examples, ConcatExamples):
        return [one for part in examples.parts for one in prepared_in(part)]
    whole = getattr(examples, "whole", None)
    return prepared_in(whole) if isinstance(whole, Examples) else []


def prepared_rows(examples: Sequence[Example]) -> tuple[PreparedExamples, NDArray[np.int64]] | None:
    """The one prepared part that a view rests on, and which of its examples it shows; None for any other view."""
    if isinstance(examples, PreparedExamples):
        return examples, np.arange(len(examples))
    whole, indices = getattr(examples, "whole", None), getattr(examples, "indices", None)
    if not isinstance(whole, Examples) or indices is None:
        return None
    found = prepared_rows(whole)
    return None if found is None else (found[0], found[1][np.asarray(indices, np.int64)])


def locate(examples: Sequence[Example], index: int) -> tuple[PreparedExamples, int] | None:
    """The prepared part that an example of a view is of, and its number there."""
    if isinstance(examples, PreparedExamples):
        return examples, index
    if isinstance(examples, ConcatExamples):
        return locate(*examples.find(index))
    whole, indices = getattr(examples, "whole", None), getattr(examples, "indices", None)
    return locate(whole, int(indices[index])) if isinstance(whole, Examples) and indices is not None else None


def known_headers(
    examples: Sequence[Example], indices: Sequence[int], given: Sequence[Example | None] = ()
) -> dict[MediaSource, tuple[int, int]]:
    """Lengths and rates of the audio of some examples, as far as they are prepared: no file is looked at.

    Args:
        examples: The view.
        indices: The examples' numbers.
        given: The examples themselves, where they are at hand; of one that is None, nothing is known.
    """
    found: dict[MediaSource, tuple[int, int]] = {}
    if not prepared_in(examples):
        return found
    for index, example in zip(indices, given or (examples[index] for index in indices), strict=True):
        place = locate(examples, index)
        if place is None or example is None:
            continue
        part, number = place
        # A view changes an example's task and languages, never its media.
        for item, header in zip(media_of(example), part.headers(number), strict=True):
            source = file_source(item)
            if source is not None and 0 < header[1] < VIDEO_RATE:
                found[source] = header
    return found


def shown_headers(examples: Sequence[Example]) -> dict[MediaSource, tuple[int, int]]:
    """`known_headers` of those that may be shown before others."""
    if isinstance(examples, ConcatExamples):
        return {source: header for part in examples.parts for source, header in shown_headers(part).items()}
    pool: Sequence[int] = getattr(examples, "pool", ())
    if pool:
        return known_headers(examples, pool)
    whole = getattr(examples, "whole", None)
    return shown_headers(whole) if isinstance(whole, Examples) else {}


def view_texts(examples: object) -> Iterator[str]:
    """What views show of the examples that they rest on, the outermost first."""
    while isinstance(whole := getattr(examples, "whole", None), Examples):
        task = getattr(examples, "task", None)
        settings = None if task is None else (type(task).__qualname__, task.model_dump_json())
        languages = [getattr(examples, name, None) for name in ("source_language", "target_language")]
        indices = np.asarray(getattr(examples, "indices", ()), np.int64)
        shown = hashlib.blake2b(indices.tobytes(), digest_size=16).hexdigest()
        yield repr((type(examples).__qualname__, settings, languages, shown))
        examples = whole


@contextmanager
def unchecked(examples: Sequence[Example]) -> Iterator[None]:
    """The prepared parts of a view give examples without a look at their files."""
    with ExitStack() as stack:
        for part in prepared_in(examples):
            stack.enter_context(part.unchecked())
        yield
