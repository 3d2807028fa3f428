"""Words pydantic's validation errors for the user: the key's path, what was got, and the nearest name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from speechlmm_core.config import ModelConfig
from speechlmm_core.faults import OWN
from speechlmm_core.registry import Registry, nearest

_SHOWN = 80


def explain(error: ValidationError, root: type[BaseModel], data: Any, *, without: Any = None) -> list[str]:
    """One line for each fault.

    Args:
        error: What pydantic raised.
        root: The class that was validated.
        data: What it was validated from.
        without: Faults of this value are left out.
    """
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        if without is not None and detail["input"] == without:
            continue
        for line in _word(detail, root, data).splitlines():
            if line not in lines:
                lines.append(line)
    return lines


def _word(detail: ErrorDetails, root: type[BaseModel], data: Any) -> str:
    path = detail["loc"]
    place = ".".join(str(part) for part in path)
    if detail["type"] == "extra_forbidden":
        owner = owner_of(root, data, path[:-1])
        known = sorted(owner.model_fields) if owner else []
        listed = f" (known: {', '.join(known)})" if known else ""
        return f"{place}: unknown key {path[-1]!r}{nearest(str(path[-1]), known)}{listed}"
    if detail["type"] == "missing":
        return f"{place}: missing"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "dataset_entry":  # its lines begin with paths within the entry
        return "\n".join(f"{place}{line}" for line in message.splitlines())
    if detail["type"] == "training_argument":  # its lines begin with fields
        return "\n".join(f"{place}.{line}" for line in message.splitlines())
    # Messages of our own say what was got; pydantic's do not.
    if detail["type"] in _WITHOUT_VALUE or not isinstance(detail["input"], str | int | float | bool | None):
        return f"{place}: {message}" if place else message
    value = repr(detail["input"])
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    return f"{place}: got {shown}; {message[:1].lower()}{message[1:]}"


_WITHOUT_VALUE = frozenset({"value_error", "unknown_component", OWN})


def owner_of(root: type[BaseModel], data: Any, path: Sequence[str | int]) -> type[BaseModel] | None:
    """The config class of the mapping at a path, through registries; None where it cannot be told."""
    annotation: Any = root
    metadata: Sequence[Any] = ()
    for part in [*path, None]:
        cls = _class_of(annotation, metadata, data)
        if part is None:
            return cls
        data = _item(data, part)
        if cls is None:
            inner = [arg for arg in get_args(annotation) if arg is not type(None)]
            annotation, metadata = (inner[-1] if inner else None), ()
        elif isinstance(part, str) and part in cls.model_fields:
            field = cls.model_fields[part]
            annotation, metadata = field.annotation, field.metadata
        elif cls is ModelConfig and isinstance(part, str):
            kind = part.rpartition("_")[2]
            annotation, metadata = None, [Registry.by_kind[kind]] if kind in Registry.by_kind else []
        else:
            return None
    return None


def _class_of(annotation: Any, metadata: Sequence[Any], data: Any) -> type[BaseModel] | None:
    candidates = [*metadata, *getattr(annotation, "__metadata__", ())]
    for option in get_args(annotation):
        candidates.extend(getattr(option, "__metadata__", ()))
    for candidate in candidates:
        if isinstance(candidate, Registry) and isinstance(data, dict) and data.get("type") in candidate.names():
            return candidate.get(data["type"])
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel) and isinstance(data, dict):
            return option
    return None


def _item(data: Any, part: str | int) -> Any:
    try:
        return data[part]
    except (KeyError, IndexError, TypeError):
        return None
