"""What an override, a setting or an adjustment changed in a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import yaml

_SHOWN = 100


class _Absent:
    def __repr__(self) -> str:
        return "(none)"


ABSENT = _Absent()
"""Stands for the value of a key that is not there."""


@dataclass(frozen=True)
class Change:
    """One value that was changed."""

    key: str
    before: Any
    after: Any
    source: str
    """What changed it, as the user wrote it."""

    def __str__(self) -> str:
        before, after = (in_yaml(value) for value in (self.before, self.after))
        return f"{self.key}: {_shortened(before)} -> {_shortened(after)}"


def in_yaml(value: Any) -> str:
    """A value as it would stand in YAML, on one line."""
    if value is ABSENT:
        return repr(value)
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def differences(before: Mapping[str, Any], after: Mapping[str, Any], source: str) -> list[Change]:
    """The values that differ; a part that came or went whole is one change."""
    return list(_differences(before, after, source, ""))


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], source: str, prefix: str) -> Iterator[Change]:
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key, ABSENT), after.get(key, ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, source, f"{prefix}{key}.")
        elif old is ABSENT or new is ABSENT or type(old) is not type(new) or old != new:
            yield Change(f"{prefix}{key}", old, new, source)


def change_lines(changes: Sequence[Change]) -> Iterator[str]:
    """What each source changed: its name, and a line for each value."""
    for source, own in groupby(changes, lambda change: change.source):
        yield source
        yield from (f"  {change}" for change in own)
