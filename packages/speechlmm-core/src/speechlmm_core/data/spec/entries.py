"""Entries of a specification, as users write them, and the typed form that they become. Imports no torch.

An entry is a path (a `jsonl` manifest), a mapping with a `type` (a reader) or a `preset`, or the first SpeechLMM's
form with a single key, ``{CoVoST: {datapath: …, task: ST, …}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from speechlmm_core.data.spec.config import DatasetSpec, Destination, PartitionSpec
from speechlmm_core.data.spec.entry_faults import SpecFaults, key_fault, shown
from speechlmm_core.data.spec.entry_fields import COMMON, SELECTORS, default_name, typed_entry
from speechlmm_core.data.spec.environment import check_characters, resolve_environment
from speechlmm_core.data.spec.partition_names import for_preset, spelt
from speechlmm_core.data.spec.presets import find_preset, lay_over, plain_name, preset_files, read_preset
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.dataset import DatasetConfig, datasets
from speechlmm_core.registry import nearest
from speechlmm_core.tasks.names import task_name

Entry = str | Path | Mapping[str, Any] | DatasetConfig | DatasetSpec

ALIASES = {"datapath": "path", "additional_args": "task_options"}
"""Keys of the first SpeechLMM, and what they are called here."""
ABOUT_PRESET = ("aliases", "tasks", "needs", "description")
"""Keys of a preset that are no fields of a dataset."""


def parse_entry(
    entry: Any, place: str, faults: SpecFaults, *, destination: Destination | None = None
) -> DatasetSpec | None:
    """The typed form of an entry; None where it is faulty, which is noted.

    Args:
        entry: What the user wrote.
        place: Where it stands (`datasets[2]`).
        faults: Takes what is wrong.
        destination: What its list is for, where it stands in one.
    """
    if isinstance(entry, DatasetSpec):
        return entry
    if isinstance(entry, DatasetConfig):
        return DatasetSpec(name=default_name(entry), reader=entry, whole=PartitionSpec(destination=destination))
    before = len(faults)
    raw = _resolved(str(entry) if isinstance(entry, Path) else entry, place, faults)
    if len(faults) > before:
        return None
    fields = _fields(raw, place, faults, destination)
    return None if fields is None else typed_entry(fields, place, faults, destination)


def dataset_config(entry: Entry) -> DatasetConfig:
    """The reader behind an entry: a path is a JSONL manifest, a mapping names its `type`.

    Raises:
        ConfigError: The entry is neither, or its type is unknown.
    """
    return dataset_spec(entry).reader


def dataset_spec(entry: Entry, *, place: str = "dataset", destination: Destination | None = None) -> DatasetSpec:
    """The typed form of an entry.

    Raises:
        ConfigError: What is wrong with it, a line for each fault.
    """
    faults = SpecFaults()
    spec = parse_entry(entry, place, faults, destination=destination)
    if spec is None:
        raise ConfigError("\n".join(faults.lines))
    return spec


def _resolved(value: Any, place: str, faults: SpecFaults) -> Any:
    """A copy with environment variables filled in and its keys as text."""
    if isinstance(value, str):
        try:
            check_characters(value)
            return resolve_environment(value)
        except ValueError as exc:
            faults.add(place, str(exc))
            return None
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, inner in cast("Mapping[Any, Any]", value).items():
            name = str(key)
            found[name] = _resolved(inner, f"{place}.{name}", faults)
        return found
    if isinstance(value, list | tuple):
        return [_resolved(inner, f"{place}[{at}]", faults) for at, inner in enumerate(cast("list[Any]", value))]
    return value


def _fields(entry: Any, place: str, faults: SpecFaults, destination: Destination | None) -> dict[str, Any] | None:
    """An entry as a mapping with a `type`, its preset merged in."""
    if isinstance(entry, str) and entry.strip():
        return {"type": "jsonl", "path": entry}
    if not isinstance(entry, dict) or not entry:
        expected = "a manifest's path, or a mapping with a `type` or `preset`"
        faults.add(place, f"expected {expected}, got {shown(entry)}")
        return None
    fields = cast("dict[str, Any]", entry)
    if len(fields) == 1 and not fields.keys() & {*SELECTORS, *ALIASES, *COMMON}:
        name, inner = next(iter(fields.items()))
        if not isinstance(inner, dict | None):
            faults.add(f"{place}.{name}", f"expected a mapping with the dataset's fields, got {shown(inner)}")
            return None
        selector = _selector(name)
        if selector is None:
            faults.add(place, _unknown_dataset(name))
            return None
        fields = {**selector, **(cast("dict[str, Any]", inner) or {})}
    found: dict[str, Any] = {}
    for key, value in fields.items():
        name = ALIASES.get(key, key)
        if name in found or (name != key and name in fields):
            faults.add(f"{place}.{key}", f"the same as {name!r}, which is there too; keep one")
            return None
        found[name] = value
    return _with_preset(found, place, faults, destination)


def _selector(name: str) -> dict[str, Any] | None:
    """What a dataset's name stands for: a preset, or a reader."""
    if (preset := find_preset(name)) is not None:
        return {"preset": preset}
    wanted = plain_name(name)
    reader = next((one for one in datasets.names() if plain_name(one) == wanted), None)
    return None if reader is None else {"type": reader}


def _unknown_dataset(name: str) -> str:
    presets, readers = sorted(preset_files()), datasets.names()
    hint = nearest(name.lower(), [*presets, *readers])
    return f"unknown dataset {name!r}{hint} (presets: {', '.join(presets) or 'none'}; readers: {', '.join(readers)})"


def _with_preset(
    fields: dict[str, Any], place: str, faults: SpecFaults, destination: Destination | None
) -> dict[str, Any] | None:
    reader = fields.pop("reader", None)
    if reader is not None:
        if not isinstance(reader, dict) or fields.keys() & {"type", "preset"}:
            faults.add(f"{place}.reader", "expected a mapping with the reader's `type` and fields, and no other `type`")
            return None
        return {**fields, **reader}
    named = _preset_name(fields, place, faults)
    if named is None:
        return None
    name, fields = named
    if name is None:
        return fields
    preset = find_preset(name) if isinstance(name, str) else None
    if preset is None:
        known = sorted(preset_files())
        hint = nearest(str(name).lower(), known)
        faults.add(f"{place}.preset", f"unknown preset {shown(name)}{hint} (available: {', '.join(known) or 'none'})")
        return None
    return _laid_over_preset(fields, preset, place, faults, destination)


def _preset_name(fields: dict[str, Any], place: str, faults: SpecFaults) -> tuple[Any, dict[str, Any]] | None:
    """The preset that an entry names by `preset` or `type`, if any, and the entry without it."""
    name, kind = fields.get("preset"), fields.get("type")
    fields = {key: value for key, value in fields.items() if key != "preset"}
    if name is not None:
        return name, fields
    if not isinstance(kind, str):
        hint = key_fault("type", fields, (*SELECTORS, *COMMON))
        faults.add(place, hint or f"expected a `type` (a reader) or a `preset`, got {shown(kind)}")
        return None
    if kind in datasets.loaded or kind in datasets.names():
        return None, fields
    selector = _selector(kind)
    if selector is None:
        faults.add(f"{place}.type", _unknown_dataset(kind))
        return None
    fields.pop("type")
    return selector.pop("preset", None), {**selector, **fields}


def _laid_over_preset(
    fields: dict[str, Any], preset: str, place: str, faults: SpecFaults, destination: Destination | None
) -> dict[str, Any] | None:
    below = read_preset(preset)
    served: Mapping[str, Any] = below.get("tasks") or {}
    task = fields.get("task", below.get("task"))
    if task is None and len(served) == 1:
        task = next(iter(served))
    own: Mapping[str, Any] = {}
    if served:
        named = task.get("type") if isinstance(task, dict) else task
        chosen = next((one for one in served if _same_task(one, named)), None)
        if chosen is None and "columns" not in fields:
            said = "no task is named" if named is None else f"the dataset does not serve the task {shown(named)}"
            hint = nearest(str(named).lower(), list(served))
            faults.add(f"{place}.task", f"{said}{hint} ({preset} serves {', '.join(served)}; or map its `columns`)")
            return None
        own = served.get(chosen) or {} if chosen is not None else {}
    base = lay_over({key: value for key, value in below.items() if key not in ABOUT_PRESET}, own)
    known = base.get("partitions")
    if isinstance(known, Mapping):
        named = fields.get("partitions")
        if named:
            # Naming some of a corpus' partitions leaves out the others.
            fields["partitions"] = spelt(named, f"{place}.partitions", faults)
            known = {name: known[name] or {} for name in fields["partitions"] if name in known}
        base["partitions"] = for_preset(known, destination, named=bool(named))
    return {"name": preset, **lay_over(base, fields), **({} if task is None else {"task": task})}


def _same_task(one: str, other: Any) -> bool:
    if not isinstance(other, str):
        return False
    try:
        return task_name(one) == task_name(other)
    except ConfigError:
        return plain_name(one) == plain_name(other)
