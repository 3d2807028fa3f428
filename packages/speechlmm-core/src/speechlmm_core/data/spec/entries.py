"""Entries of a specification, as users write them, and the typed form that they become. Imports no torch.

An entry is a path (a `jsonl` manifest), a mapping with a `type` (a reader) or a `preset`, or the first SpeechLMM's
form with a single key, ``{CoVoST: {datapath: …, task: ST, …}}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from speechlmm_core.data.spec.config import DatasetSpec, Destination, Languages, PartitionSpec
from speechlmm_core.data.spec.entry_faults import SpecFaults, key_fault, shown, unknown_key
from speechlmm_core.data.spec.environment import check_characters, resolve_environment
from speechlmm_core.data.spec.language_codes import EXPECTED, parse_languages
from speechlmm_core.data.spec.partition_names import for_list, for_preset, spelt
from speechlmm_core.data.spec.presets import find_preset, lay_over, plain_name, preset_files, read_preset
from speechlmm_core.errors import ComponentLoadError, ConfigError, SpeechLMMError
from speechlmm_core.interfaces.dataset import DatasetConfig, datasets
from speechlmm_core.interfaces.task import TaskConfig, tasks
from speechlmm_core.registry import nearest
from speechlmm_core.tasks.names import task_name

Entry = str | Path | Mapping[str, Any] | DatasetConfig | DatasetSpec

ALIASES = {"datapath": "path", "additional_args": "task_options"}
"""Keys of the first SpeechLMM, and what they are called here."""
COMMON = ("name", "task", "task_options", "languages", "partitions", "weight", "whole")
PARTITION_KEYS = tuple(PartitionSpec.model_fields)
SELECTORS = ("type", "preset", "reader")
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
        return DatasetSpec(name=_default_name({}, entry), reader=entry, whole=PartitionSpec(destination=destination))
    before = len(faults)
    raw = _resolved(str(entry) if isinstance(entry, Path) else entry, place, faults)
    if len(faults) > before:
        return None
    fields = _fields(raw, place, faults, destination)
    return None if fields is None else _typed(fields, place, faults, destination)


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


def _typed(
    fields: dict[str, Any], place: str, faults: SpecFaults, destination: Destination | None
) -> DatasetSpec | None:
    before = len(faults)
    common = {key: fields.pop(key, None) for key in COMMON}
    whole = _part(
        {**_mapping(common["whole"], f"{place}.whole", faults), **_taken(fields)}, place, faults, PartitionSpec()
    )
    reader = _reader(fields, place, faults)
    task = _task(common["task"], common["task_options"], place, faults)
    languages = _languages(common["languages"], f"{place}.languages", faults)
    partitions: dict[str, PartitionSpec] = {}
    for name, value in spelt(common["partitions"], f"{place}.partitions", faults).items():
        part = _part(_mapping(value, f"{place}.partitions.{name}", faults), f"{place}.partitions.{name}", faults, whole)
        if part is not None:
            partitions[name] = part
    name, weight = common["name"], common["weight"]
    if name is not None and (not isinstance(name, str) or not name.strip()):
        faults.add(f"{place}.name", f"expected a text, got {shown(name)}")
    if weight is not None and (
        isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 1e18
    ):
        faults.add(f"{place}.weight", f"expected a number from 0 on, got {shown(weight)}")
    if len(faults) > before or reader is None or whole is None:
        return None
    partitions, whole = for_list(partitions, whole, destination, place, faults)
    if len(faults) > before:
        return None
    return DatasetSpec(
        name=name.strip() if isinstance(name, str) else _default_name(fields, reader),
        reader=reader,
        task=task,
        languages=languages,
        partitions=partitions,
        whole=whole,
        weight=None if weight is None else float(weight),
    )


def _taken(fields: dict[str, Any]) -> dict[str, Any]:
    """Takes a partition's keys out of an entry, where they hold for all of it."""
    return {key: fields.pop(key) for key in PARTITION_KEYS if key in fields}


def _mapping(value: Any, place: str, faults: SpecFaults) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, PartitionSpec):
        return value.model_dump(exclude_none=True)
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)
    faults.add(place, f"expected a mapping, got {shown(value)}")
    return {}


def _part(values: dict[str, Any], place: str, faults: SpecFaults, whole: PartitionSpec | None) -> PartitionSpec | None:
    """A partition's settings; what it leaves out is as for all of the dataset."""
    base = {} if whole is None else whole.model_dump(exclude_none=True)
    return faults.validated(PartitionSpec, {**base, **values}, place)


def _reader(fields: dict[str, Any], place: str, faults: SpecFaults) -> DatasetConfig | None:
    kind = fields["type"]
    try:
        cls = datasets.get(kind)
    except (PydanticCustomError, SpeechLMMError) as exc:
        faults.add(f"{place}.type", str(exc))
        return None
    known = (*cls.model_fields, *SELECTORS, *COMMON, *PARTITION_KEYS)
    unknown = [key for key in fields if key not in cls.model_fields]
    for key in unknown:
        listed = ", ".join(sorted({*cls.model_fields, *COMMON, *PARTITION_KEYS} - {"whole"}))
        faults.add(f"{place}.{key}", unknown_key(key, known, f" (known: {listed})"))
    return faults.validated(cls, {key: value for key, value in fields.items() if key not in unknown}, place)


def _task(task: Any, options: Any, place: str, faults: SpecFaults) -> TaskConfig | None:
    if isinstance(task, TaskConfig):
        return task
    options = _mapping(options, f"{place}.task_options", faults)
    given: dict[str, Any] = {"type": task} if isinstance(task, str) else _mapping(task, f"{place}.task", faults)
    if not given and task != {}:
        if options:
            faults.add(f"{place}.task_options", "there is no `task` that takes them")
        return None
    name = given.get("type")
    if not isinstance(name, str):
        faults.add(f"{place}.task", f"expected a task's name, or a mapping with its `type`, got {shown(task)}")
        return None
    try:
        found = name if name in tasks.loaded else task_name(name)
        cls = tasks.get(found)
    except (ConfigError, ComponentLoadError) as exc:
        faults.add(f"{place}.task", str(exc))
        return None
    where = f"{place}.task_options" if options else f"{place}.task"
    return faults.validated(cls, {**given, "type": found, **options}, where)


def _same_task(one: str, other: Any) -> bool:
    if not isinstance(other, str):
        return False
    try:
        return task_name(one) == task_name(other)
    except ConfigError:
        return plain_name(one) == plain_name(other)


def _languages(value: Any, place: str, faults: SpecFaults) -> tuple[Languages, ...] | None:
    if value is None or (isinstance(value, str) and value.strip().lower() == "all"):
        return None
    listed: Sequence[Any] = value if isinstance(value, list) else [value]
    if any(isinstance(one, str) and one.strip().lower() == "all" for one in listed):
        if len(listed) == 1:
            return None
        faults.add(place, "`all` stands alone; leave out the others")
        return None
    if not listed:
        faults.add(place, f"expected {EXPECTED}, got an empty list")
    found: list[Languages] = []
    for at, one in enumerate(listed):
        here = f"{place}[{at}]" if isinstance(value, list) else place
        try:
            languages = parse_languages(one)
        except ValueError as exc:
            faults.add(here, str(exc))
            continue
        if languages in found:
            faults.add(here, f"{str(languages)!r} is there twice")
        found.append(languages)
    return tuple(found)


def _default_name(fields: Mapping[str, Any], reader: BaseModel) -> str:
    path = str(getattr(reader, "path", "") or "")
    if getattr(reader, "type", None) == "jsonl" and "{" not in path:
        return Path(path).stem or "jsonl"
    return path or str(getattr(reader, "type", "dataset"))
