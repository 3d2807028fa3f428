"""The fields of an entry of a specification, each in the typed form that it becomes. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from speechlmm_core.data.spec.config import DatasetSpec, Destination, Languages, PartitionSpec
from speechlmm_core.data.spec.entry_faults import SpecFaults, shown, unknown_key
from speechlmm_core.data.spec.language_codes import EXPECTED, parse_languages
from speechlmm_core.data.spec.partition_names import for_list, spelt
from speechlmm_core.errors import ComponentLoadError, ConfigError, SpeechLMMError
from speechlmm_core.interfaces.dataset import DatasetConfig, datasets
from speechlmm_core.interfaces.task import TaskConfig, tasks
from speechlmm_core.tasks.names import task_name

COMMON = ("name", "task", "task_options", "languages", "partitions", "weight", "whole")
PARTITION_KEYS = tuple(PartitionSpec.model_fields)
SELECTORS = ("type", "preset", "reader")


def typed_entry(
    fields: dict[str, Any], place: str, faults: SpecFaults, destination: Destination | None
) -> DatasetSpec | None:
    """The typed form of an entry that names its `type`; None where a field is faulty, which is noted.

    Args:
        fields: Its fields, a preset's among them.
        place: Where it stands (`datasets[2]`).
        faults: Takes what is wrong.
        destination: What its list is for, where it stands in one.
    """
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
        name=name.strip() if isinstance(name, str) else default_name(reader),
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


def default_name(reader: BaseModel) -> str:
    """What a dataset is called that nobody named: a manifest's file name, else its reader's path or type."""
    path = str(getattr(reader, "path", "") or "")
    if getattr(reader, "type", None) == "jsonl" and "{" not in path:
        return Path(path).stem or "jsonl"
    return path or str(getattr(reader, "type", "dataset"))
