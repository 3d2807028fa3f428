"""How much of a partition is used: a number of records, or a slice of them. Imports no torch."""

from __future__ import annotations

import re
from fractions import Fraction

from pydantic_core import PydanticCustomError

EXPECTED = 'a number of records (1000), or a slice in records or per cent (":1000", ":10%", "10%:20%")'
_COUNTS = (1, 2, 5, 10, 100, 10**3, 10**4, 10**6, 10**9, 10**40)
"""Numbers of records of which an amount has some for at least one."""
_BOUND = re.compile(r"(-?)(\d{1,18}(?:\.\d{1,18})?)(%?)")


def check_amount(value: object) -> object:
    """Refuses what is no amount; for pydantic."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    if isinstance(value, str):
        text = f":{value}" if ":" not in value else value
        bounds = [_bound(part) for part in text.split(":")]
        if len(bounds) == 2 and None not in bounds:
            if not any(slice_of(value.strip(), count) for count in _COUNTS):
                raise PydanticCustomError("amount", "no record lies in it; expected {expected}", {"expected": EXPECTED})
            return value.strip()
    raise PydanticCustomError("amount", "expected {expected}", {"expected": EXPECTED})


def slice_of(amount: int | str | None, count: int) -> range:
    """The records of ``count`` that an amount stands for."""
    if amount is None:
        return range(count)
    first, last = _bounds(amount)
    return range(_at(first, count, 0), max(_at(last, count, count), _at(first, count, 0)))


def limit_of(amount: int | str | None) -> int | None:
    """How many records from the start an amount needs at most; None where that depends on how many there are."""
    if amount is None:
        return None
    first, last = _bounds(amount)
    plain = all(bound == "" or not (bound.startswith("-") or bound.endswith("%")) for bound in (first, last))
    return int(last) if plain and last else None


def _bounds(amount: int | str) -> tuple[str, str]:
    text = str(amount)
    first, _, last = text.partition(":") if ":" in text else ("", "", text)
    return first.strip(), last.strip()


def _bound(text: str) -> str | None:
    """A bound as it is written, or None if it is none."""
    text = text.strip()
    match = _BOUND.fullmatch(text)
    if text and (match is None or ("." in text and not match[3]) or (match[3] and Fraction(match[2]) > 100)):
        return None
    return text


def _at(bound: str, count: int, default: int) -> int:
    if not bound:
        return default
    if bound.endswith("%"):
        share = Fraction(bound.removesuffix("%")) / 100
        at = int(abs(share) * count)
    else:
        share = Fraction(int(bound))
        at = abs(int(bound))
    at = count - at if share < 0 else at
    return min(max(at, 0), count)
