"""The parts of a specification that are prepared, opened as their readers read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from speechlmm_core.data.examples import Examples, as_examples
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.index.layout import part_digest, part_folder
from speechlmm_core.data.index.listed import states_change
from speechlmm_core.data.index.state import FileState
from speechlmm_core.data.jsonl.config import JsonlDatasetConfig
from speechlmm_core.data.spec.config import DataSpec
from speechlmm_core.data.spec.part_faults import merged
from speechlmm_core.data.spec.parts import Part, parts_of, reading
from speechlmm_core.data.spec.serves import unserved
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.interfaces.dataset import Selection
from speechlmm_train.prepare.sources import source_states


@dataclass(frozen=True)
class OpenPart:
    """A part whose rows are to be listed."""

    part: Part
    """The part."""
    examples: Examples
    """Its rows."""
    sources: tuple[FileState, ...]
    """The files that list them, as they were before they were read."""
    count: int
    """How many rows are prepared."""
    limit: int | None
    """How many rows the reader was asked for; None for all."""
    digest: str
    """What decides which examples it has."""
    folder: Path
    """Where it is written."""

    def check_unchanged(self) -> None:
        """Makes sure that the files that list the rows are still as they were.

        Raises:
            DataError: One has changed.
        """
        if change := states_change(self.sources):
            raise DataError(f"{self.part.name}: {change}, while it was prepared; start again")


def open_parts(spec: DataSpec, base: Path, index_dir: Path, *, limit: int | None) -> list[OpenPart]:
    """Opens all parts of a specification, each once.

    Args:
        spec: The specification.
        base: Folder where relative paths start.
        index_dir: Where the index is written.
        limit: How many rows of each part are prepared; None for all.

    Raises:
        DataError: What is wrong with the data; the faults of all parts together.
    """
    faults = Faults()
    found: dict[Path, OpenPart] = {}
    for dataset in spec.datasets:
        try:
            parts = parts_of(dataset, base)
            if parts and (fault := unserved(dataset)):
                raise DataError(fault)
        except (DataError, ConfigError) as exc:
            faults.extend(DataError(str(exc)))
            continue
        errors: list[tuple[str, DataError | ConfigError]] = []
        for part in parts:
            try:
                one = _open(part, base, index_dir, limit)
                known = found.get(one.folder)
                if known is None or known.count < one.count or known.limit is not None:
                    found[one.folder] = one
            except (DataError, ConfigError) as exc:
                errors.append((part.name, exc))
        for error in merged(dataset.name, errors):
            faults.extend(error)
    faults.raise_if_any()
    return list(found.values())


def _open(part: Part, base: Path, index_dir: Path, limit: int | None) -> OpenPart:
    reader = part.spec.reader
    wanted = min((one for one in (limit, part.selection.limit) if one is not None), default=None)
    selection = replace(part.selection, limit=wanted)
    examples = _read(part, base, selection)
    if not len(examples):
        raise DataError(f"{part.name}: there are no rows to prepare")
    sources = source_states(examples, reader, base)
    # A reader that passes over the limit has read everything, which then serves other amounts as well.
    everything = limit is None and (wanted is None or len(examples) > wanted)
    digest = part_digest(part.name, reader, base, part.selection)
    return OpenPart(
        part=part,
        examples=examples,
        sources=sources,
        count=len(examples) if everything or wanted is None else min(len(examples), wanted),
        limit=None if everything else wanted,
        digest=digest,
        folder=part_folder(index_dir, part.name, digest),
    )


def _read(part: Part, base: Path, selection: Selection) -> Examples:
    reader = part.spec.reader
    if isinstance(reader, JsonlDatasetConfig):
        # What is missing is reported with everything else, and what the task lacks when the index is opened.
        return reader.open(base, selection, check_media=False, check_task=False)
    with reading(part.name):
        return as_examples(reader.read(base, selection))
