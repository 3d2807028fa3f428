"""Looks for the media files of a run: all of them where there are not too many, else some from all over."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.chats import chat_of
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ConcatExamples, Examples, as_examples
from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError, MediaError
from speechlmm_core.media.source import MediaSource, file_source
from speechlmm_train.preflight.deadline import Deadline
from speechlmm_train.preflight.weaknesses import Weaknesses
from speechlmm_train.trainer.stage_data import StageData

logger = logging.getLogger(__name__)

AT_ONCE = 256
"""Examples between two looks at the clock."""


def check_files(stages: Sequence[StageData], deadline: Deadline) -> list[str]:
    """Makes sure that the media of the examples that are used are there, and that no row is there twice.

    Examples come in an order that is spread over the whole dataset, until all are seen or the time is over.

    Returns:
        Warnings: what is odd about few examples.

    Raises:
        DataError: Files are missing, empty, or shorter than the parts that are named of them; or much is odd.
    """
    faults, warnings = Faults(), list[str]()
    looked: set[MediaSource] = set()
    sets = list(_sets(stages))
    for number, (name, examples, indices, seconds) in enumerate(sets):
        own = deadline.part(deadline.left / (len(sets) - number))
        weaknesses, rows, count = Weaknesses(), set[tuple[object, ...]](), 0
        for place in spread(len(indices)):
            if count % AT_ONCE == 0 and count and not own.left:
                # A list of faults would otherwise be taken for all that there are.
                level = logging.WARNING if faults.count else logging.INFO
                told = "%s: of %s examples, the media files of %s were looked for"
                logger.log(level, told, name, f"{len(indices):,}", f"{count:,}")
                break
            count += 1
            index = int(indices[place])
            try:
                example = examples.example(index)
                _look(example, looked)
            except (MediaError, DataError) as exc:
                faults.add(examples.place(index), str(exc), order=index)
                continue
            row = (_dataset(examples, index), example.id, example.task, example.target_language)
            if row in rows:
                weaknesses.add("have the id of another of the same task; keep one of them", examples.place(index))
            rows.add(row)
            if seconds is not None and _differs(example.duration, float(seconds[index])):
                weaknesses.add(
                    "have a `duration` that is not that of their file; see its sampling rate, or whether it is cut off",
                    examples.place(index),
                )
        if not faults.count:
            warnings += weaknesses.judge(count, name)
    faults.raise_if_any()
    return warnings


def _differs(stated: float | None, found: float) -> bool:
    return stated is not None and abs(stated - found) > max(0.5, 0.1 * stated)


def _dataset(examples: Examples, index: int) -> int:
    return id(examples.find(index)[0]) if isinstance(examples, ConcatExamples) else 0


def spread(count: int) -> Iterator[int]:
    """The numbers below ``count``, each once, so that whatever comes first is spread over all of them."""
    step = max(int(count * 0.618), 1)
    while np.gcd(step, count) != 1 and count:
        step += 1
    for number in range(count):
        yield number * step % count


def _sets(
    stages: Sequence[StageData],
) -> Iterator[tuple[str, Examples, Sequence[int] | NDArray[np.int64], NDArray[np.float64] | None]]:
    """Sets of examples: a name, the examples, the numbers of those that take part, and the seconds of all, if known."""
    known: set[int] = set()
    for stage in stages:
        name = f"stage {stage.settings.name!r}"
        if id(stage.examples) not in known:
            known.add(id(stage.examples))
            seconds = np.full(len(stage.examples), np.nan)
            seconds[stage.indices] = stage.mixture.seconds
            yield name, as_examples(stage.examples), stage.indices, seconds
        for kind, sample in stage.evaluation.samples.items() if stage.evaluation else ():
            for _, examples in sample.parts:
                yield f"{name}, {kind}", examples, range(len(examples)), None


def _look(example: Example, looked: set[MediaSource]) -> None:
    for item in _items(example):
        source = file_source(item)
        if source is not None and source not in looked:
            looked.add(source)
            source.check(f"a file of {item.get('type', 'media')}")


def _items(example: Example) -> list[dict[str, object]]:
    if example.messages is None and example.media:
        return [{**item, "type": name} for name, item in example.media.items()]
    return [item for message in chat_of(example) for item in message.media]


def existing_parent(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
