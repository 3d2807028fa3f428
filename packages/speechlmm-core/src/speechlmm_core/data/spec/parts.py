"""The parts that a dataset of a specification is read in: a partition, in a language or a pair. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from speechlmm_core.data.faults import FaultyDataError
from speechlmm_core.data.spec.amount import limit_of, slice_of
from speechlmm_core.data.spec.config import DatasetSpec, Destination, PartitionSpec
from speechlmm_core.data.spec.entry_faults import shortened
from speechlmm_core.data.spec.partition_names import select, told_destination
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection
from speechlmm_core.registry import nearest


@dataclass(frozen=True)
class Part:
    """One part of a dataset."""

    name: str
    """Unique within the specification: `covost2/train/en-de`."""
    spec: DatasetSpec
    """The dataset."""
    settings: PartitionSpec
    """Amount and filters."""
    destination: Destination
    """What it is for."""
    selection: Selection
    """What the reader is asked for."""
    beside: Mapping[str, PartitionSpec] = field(default_factory=dict[str, PartitionSpec])
    """Other partitions that the specification names, where the reader tells none apart: slices of the same rows."""

    def check_apart(self, count: int) -> None:
        """Makes sure that no other partition has the same rows.

        Args:
            count: How many rows there are.

        Raises:
            DataError: One has some.
        """
        own = slice_of(self.settings.amount, count)
        for name, settings in self.beside.items():
            other = slice_of(settings.amount, count)
            shared = min(own.stop, other.stop) - max(own.start, other.start)
            if shared > 0:
                raise DataError(
                    f"{self.spec.name}: its files tell no partitions apart, so that {self.selection.partition!r} and "
                    f"{name!r} would share {shared} of the same {count} rows; give each an `amount` of its own "
                    '(":90%" and "90%:"), keep one, or let `path` or `files` tell them by "{partition}"'
                )


def parts_of(spec: DatasetSpec, base: Path, destinations: Collection[Destination] | None = None) -> list[Part]:
    """The parts of a dataset, partition by partition and language by language.

    Args:
        spec: The dataset.
        base: Folder where its relative paths start.
        destinations: Those that are wanted; None for all.

    Raises:
        DataError: A partition does not exist, or none can be told to be for what the dataset is used for.
    """
    if spec.task is not None:
        spec = spec.model_copy(update={"task": spec.task.rooted(base)})
    whole = spec.whole
    there = _there(spec, base)
    if spec.partitions:
        unknown = [name for name in spec.partitions if there and name not in there]
        if there and unknown:
            lines = [f"{spec.name}: there is no partition {name!r}{nearest(name, there)}" for name in unknown]
            raise DataError("\n".join(f"{line} (there are: {', '.join(there)})" for line in lines))
        named: list[tuple[str | None, PartitionSpec]] = list(spec.partitions.items())
    else:
        try:
            named = [(name, whole) for name in select(there or (), whole)] or [(None, whole)]
        except ValueError as exc:
            raise DataError(f"{spec.name}: {exc}") from exc
    parts: list[Part] = []
    for partition, settings in named:
        destination = settings.destination or (told_destination(partition) if partition else None) or "train"
        if destinations is not None and destination not in destinations:
            continue
        for languages in spec.languages or (None,):
            ends = [end for end in (partition, None if languages is None else str(languages)) if end is not None]
            selection = Selection(
                partition=partition,
                source_language=None if languages is None else languages.source,
                target_language=None if languages is None else languages.target,
                task=None if spec.task is None else spec.task.type,
                limit=limit_of(settings.amount),
            )
            beside = {name: one for name, one in spec.partitions.items() if name != partition} if there == [] else {}
            parts.append(Part("/".join([spec.name, *ends]), spec, settings, destination, selection, beside))
    return parts


def _there(spec: DatasetSpec, base: Path) -> list[str] | None:
    with reading(spec.name):
        return spec.reader.partitions(base)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Makes lines for the user of what goes wrong while a reader looks at its corpus, those of third parties too.

    Raises:
        DataError: The reader failed; begins with the dataset's name.
    """
    try:
        yield
    except FaultyDataError:
        raise
    except DataError as exc:
        raise DataError(f"{shortened(name)}: {exc}") from exc
    except (OSError, ValueError, OverflowError, RecursionError) as exc:
        raise DataError(f"{shortened(name)}: cannot be read: {shortened(' '.join(str(exc).split()))}") from exc
