"""Counts what the examples take of a model, in several processes, and keeps it in the index: a run then starts at once.

Shapes: N examples.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechlmm_core.data.examples import Examples, SubsetExamples
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.header_cache import cache_folder
from speechlmm_core.data.index.sizes import Lengths, StoredSizes
from speechlmm_core.data.lengths import measure_anew
from speechlmm_core.data.shipped import base_of
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.augmentation import AugmentationConfig
from speechlmm_train.prepare.pool import follow_parent

if TYPE_CHECKING:
    from speechlmm_core.processor.processor import SpeechLMMProcessor

CHUNK = 2000
WORTH_PROCESSES = 20_000
"""Examples from which further processes, which have to import everything, save time."""


@dataclass(frozen=True)
class ModelTarget:
    """A model, and what changes the media before it gets them."""

    processor: SpeechLMMProcessor
    augment: tuple[AugmentationConfig, ...] = ()
    base: Path = Path()
    """Folder where the augmentations' paths start."""

    def max_length(self) -> Callable[[str, int], int] | None:
        """The most that augmentation may make of a medium."""
        from speechlmm_train.augment.augmenter import Augmenter

        opened = Augmenter.open(self.augment, self.processor.inputs, base=self.base)
        return None if opened is None else opened.max_length


def targets_of(
    model_path: Path | None,
    config_name: str | None,
    overrides: Sequence[str],
    *,
    config_dir: Path | None = None,
) -> list[ModelTarget]:
    """The models that sizes are counted for: a saved one, and that of a run in each of its stages.

    Raises:
        CheckpointError: The folder holds no model.
        ConfigError: The configuration does not fit together.
    """
    from speechlmm_core.processor.processor import SpeechLMMProcessor

    found: list[ModelTarget] = []
    if model_path is not None:
        found.append(ModelTarget(SpeechLMMProcessor.from_pretrained(model_path)))
    if config_name is not None or overrides:
        from speechlmm_train.compose import compose_config

        config = compose_config(config_name or "pretrain", overrides, config_dir=config_dir, imports=()).config
        processor = SpeechLMMProcessor.from_config(config.model)
        wanted = {repr(stage.data.augment): tuple(stage.data.augment) for stage in config.resolved_stages()}
        found += [ModelTarget(processor, augment, Path.cwd()) for augment in wanted.values()]
    return found


def count_sizes(
    spec_path: Path,
    targets: Sequence[ModelTarget],
    *,
    index_dir: Path,
    jobs: int,
    progress: Callable[[str, int], Callable[[int], object]],
) -> int:
    """Counts sizes of what is trained on, where they are not known; returns of how many examples.

    Args:
        spec_path: The specification, which is prepared.
        targets: The models.
        index_dir: Where it is prepared.
        jobs: Processes.
        progress: Given a dataset's name and size, what is told how many examples were counted.

    Raises:
        DataError: Examples do not fit a model; all are counted, the first listed.
    """
    faults = Faults()
    counted = 0
    opened = open_spec(read_spec(spec_path), base=base_of(spec_path), destinations={"train"}, index_dir=index_dir)
    for target in targets:
        for one in opened:
            stored = StoredSizes.of(one.examples, target.processor, target.max_length(), cache=cache_folder())
            if stored is None or stored.load() is not None:
                continue
            try:
                lengths = _count(one.examples, target, jobs, progress(one.name, len(one.examples)))
            except DataError as exc:
                faults.extend(exc)
                continue
            stored.save(lengths, in_index=True)
            counted += len(lengths)
    faults.raise_if_any()
    return counted


def _count(examples: Examples, target: ModelTarget, jobs: int, advance: Callable[[int], object]) -> Lengths:
    pieces = [range(at, min(at + CHUNK, len(examples))) for at in range(0, len(examples), CHUNK)]
    faults = Faults()
    found: list[Lengths] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="speechlmm-"))
        measured: Iterable[Lengths | DataError]
        if jobs < 2 or len(examples) < WORTH_PROCESSES:
            worker = _Worker(examples, target, folder)
            measured = map(worker.measure, pieces)
        else:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(
                ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(examples, target, folder))
            )
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            measured = pool.map(_measure, pieces)
        for piece, one in zip(pieces, measured, strict=True):
            if isinstance(one, DataError):
                faults.extend(one)
            else:
                found.append(one)
            advance(len(piece))
    faults.raise_if_any()
    return Lengths.joined(found)


class _Worker:
    def __init__(self, examples: Examples, target: ModelTarget, folder: str) -> None:
        self.examples, self.target, self.folder = examples, target, Path(folder)
        self.max_length = target.max_length()

    def measure(self, piece: range) -> Lengths | DataError:
        try:
            part = SubsetExamples(self.examples, piece)
            return measure_anew(part, self.target.processor, cache=self.folder, max_length=self.max_length)
        except DataError as exc:
            return exc


_worker: list[_Worker] = []


def _start(examples: Examples, target: ModelTarget, folder: str) -> None:
    follow_parent()
    _worker.append(_Worker(examples, target, folder))


def _measure(piece: range) -> Lengths | DataError:
    return _worker[0].measure(piece)
