"""Reads a dataset specification: a YAML file that lists datasets. Imports no torch.

Either ``datasets:`` (the first SpeechLMM's ``DATA:``), whose partitions say what they are for, or lists under
``train:``, ``eval:``, ``test:`` and ``guard:``, or both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from speechlmm_core.data.spec.config import DatasetSpec, DataSpec, Destination
from speechlmm_core.data.spec.entries import parse_entry
from speechlmm_core.data.spec.entry_faults import SpecFaults, shown, unknown_key
from speechlmm_core.data.spec.yaml_text import read_yaml
from speechlmm_core.errors import DataError, SpeechLMMError

DESTINATIONS: tuple[Destination, ...] = get_args(Destination)
LISTS = ("datasets", "DATA", *DESTINATIONS)


def read_spec(path: Path) -> DataSpec:
    """Reads a specification; relative paths in it start at the file's folder, which is `open_spec`'s ``base``.

    Raises:
        DataError: The file cannot be read, or what is wrong with it: a line for each fault.
    """
    path = _expanded(path)
    content = read_yaml(path)
    faults = SpecFaults()
    try:
        specs = parse_lists(content, faults)
    except SpeechLMMError as exc:
        raise DataError(f"{path}: {exc}") from exc
    if faults.lines:
        raise DataError("\n".join(f"{path}: {line}" for line in faults.lines))
    return DataSpec(datasets=tuple(specs))


def parse_lists(content: Any, faults: SpecFaults) -> list[DatasetSpec]:
    """The datasets of a specification that was read already."""
    expected = f"expected a list of datasets under {', '.join(f'`{name}:`' for name in LISTS if name != 'DATA')}"
    if not isinstance(content, dict) or not content:
        faults.add("specification", f"{expected}, got {'an empty file' if content is None else shown(content)}")
        return []
    specs: list[DatasetSpec] = []
    for key, entries in cast("Mapping[Any, Any]", content).items():
        if key not in LISTS:
            more = f"; {expected}"
            said = unknown_key(key, LISTS, more) if isinstance(key, str) else f"unknown key {shown(key)}{more}"
            faults.add(str(key), said)
            continue
        destination: Destination | None = next((one for one in DESTINATIONS if one == key), None)
        specs += parse_entries(entries, str(key), faults, destination=destination)
    if not specs and not faults.lines:
        faults.add("specification", f"{expected}, got none")
    return named_apart(specs, faults)


def parse_entries(
    entries: Any, place: str, faults: SpecFaults, *, destination: Destination | None = None
) -> list[DatasetSpec]:
    """The typed form of a list of entries, or of a single one."""
    listed: Sequence[Any] = [] if entries is None else entries if isinstance(entries, list | tuple) else [entries]
    found = [parse_entry(one, f"{place}[{at}]", faults, destination=destination) for at, one in enumerate(listed)]
    return [spec for spec in found if spec is not None]


def named_apart(specs: Sequence[DatasetSpec], faults: SpecFaults | None = None) -> list[DatasetSpec]:
    """The same datasets with names that differ: those of one name get their task's beside it, or a number."""
    counts = Counter(spec.name for spec in specs)
    found: list[DatasetSpec] = []
    taken: set[str] = {name for name, count in counts.items() if count == 1}
    for spec in specs:
        name = spec.name
        if counts[name] > 1:
            stem = name if spec.task is None else f"{name}-{spec.task.type}"
            name = next(one for number in range(1, 10**6) if (one := _numbered(stem, number)) not in taken)
            taken.add(name)
        found.append(spec if name == spec.name else spec.model_copy(update={"name": name}))
    return found


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem}-{number}"


def _expanded(path: Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~` and what is no user
        return Path(path)
