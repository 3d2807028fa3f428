"""Opens the datasets of a specification. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from speechlmm_core.data.examples import ConcatExamples, Examples, as_examples
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.index.header import IndexHeader
from speechlmm_core.data.index.layout import redo_hint
from speechlmm_core.data.index.open import open_prepared
from speechlmm_core.data.jsonl.config import JsonlDatasetConfig
from speechlmm_core.data.spec.choose import choose
from speechlmm_core.data.spec.config import DatasetSpec, DataSpec, Destination
from speechlmm_core.data.spec.entries import Entry, dataset_spec
from speechlmm_core.data.spec.file import named_apart
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.data.spec.part_faults import merged
from speechlmm_core.data.spec.parts import Part, parts_of, reading
from speechlmm_core.data.spec.serves import unserved
from speechlmm_core.data.spec.task_examples import TaskExamples
from speechlmm_core.errors import ConfigError, DataError


def open_spec(
    spec: DataSpec | Sequence[DatasetSpec],
    *,
    base: Path,
    destinations: Collection[Destination] | None = None,
    index_dir: Path | None = None,
) -> list[OpenedDataset]:
    """Opens every part of every dataset, in order.

    Args:
        spec: The specification, or datasets of one.
        base: Folder where relative paths start: that of the specification's file.
        destinations: What is wanted (`{"train"}`); None for everything.
        index_dir: What `speechlmm-train prepare` wrote; used for the parts that it holds.

    Raises:
        DataError: What is wrong with the data; the faults of all datasets together. A part of which no example is
            left says why.
    """
    faults = Faults()
    opened: list[OpenedDataset] = []
    for dataset in named_apart(list(spec.datasets if isinstance(spec, DataSpec) else spec)):
        try:
            parts = parts_of(dataset, base, destinations)
            if parts and (fault := unserved(dataset)):
                raise DataError(fault)
        except (DataError, ConfigError) as exc:
            _note(faults, exc)
            continue
        errors: list[tuple[str, DataError | ConfigError]] = []
        for part in parts:
            try:
                opened.append(open_part(part, base, index_dir))
            except (DataError, ConfigError) as exc:
                errors.append((part.name, exc))
        for error in merged(dataset.name, errors):
            faults.extend(error)
    faults.raise_if_any()
    return opened


def open_part(part: Part, base: Path, index_dir: Path | None = None) -> OpenedDataset:
    """Opens one part.

    Raises:
        DataError: What is wrong with its data, or that no example is left.
    """
    examples = _read(part, base, index_dir)
    reader = part.spec.reader
    chosen = choose(examples, part, strict=reader.strict)
    part.check_apart(chosen.total)
    if not len(chosen.indices):
        raise DataError(chosen.table(part.name))
    task = part.spec.task
    plain = task is None and part.selection.source_language is None and len(chosen.indices) == len(examples)
    view = examples
    if not plain:
        view = TaskExamples(
            examples,
            chosen.indices,
            task=task,
            source_language=part.selection.source_language,
            target_language=part.selection.target_language,
        )
        if len(view) <= view.num_shots:
            raise DataError(
                f"{part.name}: task {view[0].task!r} is to show {view.num_shots} further examples before each, but "
                f"there are {len(view)} in all"
            )
    return OpenedDataset(
        name=part.name,
        dataset=part.spec.name,
        task=None if task is None else task.type,
        examples=view,
        destination=part.destination,
        weight=part.spec.weight,
        total=chosen.total,
        dropped=dict(chosen.dropped),
    )


def _read(part: Part, base: Path, index_dir: Path | None) -> Examples:
    reader = part.spec.reader
    if index_dir is not None:
        prepared = open_prepared(index_dir, part.name, reader, base, part.selection)
        if prepared is not None:
            _check_destination(part, prepared.header)
            return prepared
    if isinstance(reader, JsonlDatasetConfig) and part.destination != "train":
        # What is missing is an answer that fails, as any file that cannot be read, whether prepared or not.
        return reader.open(base, part.selection, check_media=False)
    with reading(part.name):
        return as_examples(reader.read(base, part.selection))


def _check_destination(part: Part, header: IndexHeader) -> None:
    """Makes sure that the index leaves out what it should: nothing of sets for evaluation.

    Raises:
        DataError: The part was prepared for something else.
    """
    if header.flagged if part.destination == "train" else header.quarantined:
        raise DataError(
            f"{part.name}: prepared for {header.destination!r}, and now for {part.destination!r}, which other rows "
            f"take part in; {redo_hint(header.spec)} (only what is new is read)"
        )


def _note(faults: Faults, error: Exception) -> None:
    faults.extend(error if isinstance(error, DataError) else DataError(str(error)))


def open_datasets(entries: Sequence[Entry], base: Path) -> ConcatExamples:
    """Opens datasets, one after the other, as one sequence.

    Args:
        entries: Paths of JSONL manifests, or mappings with a `type` or `preset`.
        base: Folder where relative paths start.

    Raises:
        ConfigError: There are no entries, or one is not a dataset.
        DataError: Data are wrong; the faults of all datasets are reported together.
    """
    if not entries:
        raise ConfigError("no dataset is named; expected a list of manifests such as [train.jsonl]")
    return ConcatExamples([one.examples for one in open_spec([dataset_spec(one) for one in entries], base=base)])
