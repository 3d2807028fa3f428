"""What a partition is for by its name, and what a list of sets for training says instead.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from speechlmm_core.data.spec.config import Destination, PartitionSpec
from speechlmm_core.data.spec.entry_faults import SpecFaults, shown

_NAMES: dict[Destination, str] = {
    "eval": r"dev|devel|development|val|valid|validation|eval|evaluation",
    "test": r"test|testing|tst",
    "train": r"train|training|trn",
}
_PATTERNS: dict[Destination, re.Pattern[str]] = {
    name: re.compile(rf"(?:^|[^a-z])(?:{words})(?:$|[^a-z])") for name, words in _NAMES.items()
}


def told_destination(partition: str) -> Destination | None:
    """What a partition's name says that it is for (`dev-clean`, `tst-COMMON`, `train.100`); None if nothing."""
    plain = partition.lower()
    found: list[Destination] = [name for name, pattern in _PATTERNS.items() if pattern.search(plain)]
    return found[0] if found else None


def spelt(value: Any, place: str, faults: SpecFaults) -> dict[str, Any]:
    """Partitions as a mapping: also a name, or a list of names."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        names = cast("list[Any]", value)
        for at, name in enumerate(names):
            if not isinstance(name, str) or not name:
                faults.add(f"{place}[{at}]", f"expected a partition's name, got {shown(name)}")
        return {str(name): {} for name in names}
    if isinstance(value, dict) and all(value):
        return cast("dict[str, Any]", value)
    faults.add(place, f"expected partitions by name, got {shown(value)}")
    return {}


def for_preset(
    known: Mapping[str, Mapping[str, Any]], destination: Destination | None, *, named: bool
) -> dict[str, dict[str, Any]]:
    """A preset's partitions as an entry in a list of datasets for one destination uses them.

    Args:
        known: Those that the preset has, of those that the user names, if any.
        destination: What the list is for; None for an entry in no such list.
        named: Whether the user names them, so that the list decides and not the preset.
    """
    if destination is None:
        return {name: dict(part or {}) for name, part in known.items()}
    kept = {
        name: part or {}
        for name, part in known.items()
        if named or (part or {}).get("destination", told_destination(name) or "train") == destination
    }
    return {name: {key: value for key, value in part.items() if key != "destination"} for name, part in kept.items()}


def for_list(
    partitions: Mapping[str, PartitionSpec],
    whole: PartitionSpec,
    destination: Destination | None,
    place: str,
    faults: SpecFaults,
) -> tuple[dict[str, PartitionSpec], PartitionSpec]:
    """Partitions and the whole with what they are for, where an entry stands in a list for one destination."""
    if destination is None:
        return dict(partitions), whole
    said = {name: part.destination for name, part in partitions.items()} or {"": whole.destination}
    for name, one in said.items():
        if one not in (None, destination):
            where = f"{place}.partitions.{name}.destination" if name else f"{place}.destination"
            faults.add(where, f"{one!r} in a list of datasets for {destination!r}; leave it out, or list it elsewhere")
    update = {"destination": destination}
    return {name: part.model_copy(update=update) for name, part in partitions.items()}, whole.model_copy(update=update)


def select(there: Sequence[str], whole: PartitionSpec) -> list[str]:
    """The partitions that are used where none are named: those for the whole's destination, if any name tells.

    Raises:
        ValueError: None of them is for it.
    """
    if whole.destination is None or all(told_destination(name) is None for name in there):
        return list(there)
    found = [name for name in there if told_destination(name) == whole.destination]
    if not found and len(there) > 1:
        raise ValueError(f"no partition is for {whole.destination!r}; name some by `partitions` ({', '.join(there)})")
    return found or list(there)
