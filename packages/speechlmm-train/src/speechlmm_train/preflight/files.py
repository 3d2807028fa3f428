"""Looks for the media files of a run, all of them where there are not too many."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from speechlmm_core.data.chats import chat_of
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import Examples, as_examples
from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError, MediaError
from speechlmm_core.media.source import MediaSource, file_source
from speechlmm_train.preflight.deadline import Deadline
from speechlmm_train.trainer.stage_data import StageData

logger = logging.getLogger(__name__)

AT_ONCE = 256
"""Examples between two looks at the clock."""


def check_files(stages: Sequence[StageData], deadline: Deadline) -> None:
    """Makes sure that the media of the examples that are trained or evaluated on are there.

    Examples come in an order that is spread over the whole dataset, until all are seen or the time is over.

    Raises:
        DataError: Files are missing, empty, or shorter than the parts that are named of them.
    """
    faults = Faults()
    seen: set[MediaSource] = set()
    sets = list(_sets(stages))
    for number, (examples, indices) in enumerate(sets):
        own = deadline.part(deadline.left / (len(sets) - number))
        for count, index in enumerate(spread(len(indices))):
            if count % AT_ONCE == 0 and not own.left:
                logger.info("of %d examples, the media files of %d were looked for", len(indices), count)
                break
            _look(examples, int(indices[index]), seen, faults)
    faults.raise_if_any()


def spread(count: int) -> Iterator[int]:
    """The numbers below ``count``, each once, so that whatever comes first is spread over all of them."""
    step = max(int(count * 0.618), 1)
    while np.gcd(step, count) != 1 and count:
        step += 1
    for number in range(count):
        yield number * step % count


def _sets(stages: Sequence[StageData]) -> Iterator[tuple[Examples, Sequence[int]]]:
    known: set[int] = set()
    for stage in stages:
        if id(stage.examples) not in known:
            known.add(id(stage.examples))
            yield as_examples(stage.examples), stage.indices.tolist()
        for sample in stage.evaluation.samples.values() if stage.evaluation else ():
            for _, examples in sample.parts:
                yield examples, range(len(examples))


def _look(examples: Examples, index: int, seen: set[MediaSource], faults: Faults) -> None:
    try:
        example = examples.example(index)
        for item in _items(example):
            source = file_source(item)
            if source is None or source in seen:
                continue
            seen.add(source)
            source.check(f"a file of {item.get('type', 'media')}")
    except (MediaError, DataError) as exc:
        faults.add(examples.place(index), str(exc), order=index)


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
