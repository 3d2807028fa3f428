"""Recognises a mistyped key (`txt`, `durations`) among keys that are merely unknown (`speaker`)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=4096)
def near_miss(key: str, known: tuple[str, ...]) -> str | None:
    """The known key that ``key`` is most likely meant to be: one slip away, or two for long names."""
    plain = _plain(key)
    for candidate in known:
        if len(candidate) >= 4 and _within(plain, _plain(candidate), 2 if len(candidate) >= 8 else 1):
            return candidate
    return None


def mistyped(keys: Iterable[str], known: tuple[str, ...]) -> list[str]:
    """Faults of a mapping's keys. A key that resembles one which is there as well is taken for metadata."""
    keys = set(keys)
    found = []
    for key in sorted(keys.difference(known)):
        meant = near_miss(key, known)
        if meant is not None and meant not in keys:
            found.append(f"unknown key {key!r}; did you mean {meant!r}?")
    return found


def _plain(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "")


def _within(a: str, b: str, limit: int) -> bool:
    """Whether the edit distance (insert, delete, replace, swap neighbours) is at most ``limit``."""
    if abs(len(a) - len(b)) > limit:
        return False
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1] <= limit
