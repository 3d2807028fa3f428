"""Rows within nested JSON: objects in lists in objects. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

EVERY = "*"


class NestedError(Exception):
    """Where the rows should be is something else."""


def rows(value: Any, path: str) -> Iterator[dict[str, Any]]:
    """Goes through the rows of a JSON value.

    Args:
        value: What was parsed.
        path: Names on the way to the rows, with dots in between; `*` stands for every value of an object. Lists are
            gone through wherever they are.

    Raises:
        NestedError: There is no such path, or what it leads to are no objects.
    """
    steps = path.split(".") if path else []
    yield from _walk(value, steps, 0, {})


def _walk(value: Any, steps: list[str], at: int, outer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for one in value:
            yield from _walk(one, steps, at, outer)
        return
    if at == len(steps):
        if isinstance(value, Mapping):
            yield {**outer, **value}
        elif at and not isinstance(value, list):
            yield {**outer, steps[-1]: value}
        else:
            raise NestedError(f"expected objects as rows, got {value!r:.60}")
        return
    step = steps[at]
    if not isinstance(value, Mapping):
        raise NestedError(f"expected an object with {step!r}, got {value!r:.60}")
    if step == EVERY:
        for key, one in value.items():
            yield from _walk(one, steps, at + 1, {**outer, "key": key})
        return
    if step not in value:
        raise NestedError(f"there is no {step!r} (keys: {', '.join(map(str, list(value)[:20]))})")
    own = {key: one for key, one in value.items() if key != step}
    named = [one for one in steps[:at] if one != EVERY]
    yield from _walk(value[step], steps, at + 1, {**outer, named[-1]: own} if named else {**outer, **own})
