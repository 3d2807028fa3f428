"""Says a fault once that several partitions of a dataset have. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speechlmm_core.data.faults import FaultyDataError
from speechlmm_core.errors import ConfigError, DataError

NAMED = 3
"""Parts whose names are told."""


def merged(dataset: str, errors: Sequence[tuple[str, DataError | ConfigError]]) -> Iterator[DataError]:
    """The errors of a dataset's parts, those that are the same as one.

    Args:
        dataset: The dataset's name.
        errors: Name and error of each part that could not be opened.
    """
    alike: dict[str, list[tuple[str, DataError]]] = {}
    for part, error in errors:
        text = str(error).removeprefix(f"{part}: ")
        # What further lines list (the columns of this file) may differ.
        key = text if isinstance(error, FaultyDataError) else text.partition("\n")[0]
        alike.setdefault(key, []).append((part, error if isinstance(error, DataError) else DataError(str(error))))
    for group in alike.values():
        part, error = group[0]
        if len(group) == 1:
            yield error
            continue
        parts = [one.removeprefix(f"{dataset}/") for one, _ in group]
        rest = len(parts) - NAMED
        name = f"{dataset} ({', '.join(parts[:NAMED])}{f' and {rest} more' if rest > 0 else ''})"
        if isinstance(error, FaultyDataError):
            yield FaultyDataError([f"{name}: {fault}" for fault in error.faults], error.count)
        else:
            yield DataError(f"{name}: {str(error).removeprefix(f'{part}: ')}")
