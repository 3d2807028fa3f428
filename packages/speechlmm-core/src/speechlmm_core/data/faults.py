"""Faults in data, collected so that a user sees all of them at once and not one a run."""

from __future__ import annotations

from collections.abc import Sequence

from speechlmm_core.errors import DataError

LISTED = 20


class FaultyDataError(DataError):
    """Data with faults, each with its place; the message lists the first twenty."""

    def __init__(self, faults: Sequence[str], count: int) -> None:
        self.faults = list(faults)
        self.count = count
        rest = count - len(self.faults)
        what = "1 fault in the data; correct it" if count == 1 else f"{count} faults in the data; correct them"
        lines = [f"{what} and start again"]
        lines += [f"  {fault}" for fault in self.faults]
        lines += [f"  … and {rest} more"] if rest else []
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[FaultyDataError], tuple[list[str], int]]:
        return type(self), (self.faults, self.count)


class Faults:
    """Counts every fault and keeps the first few, so that a million bad lines cost no memory."""

    def __init__(self) -> None:
        self.count = 0
        self._part = 0
        self._first: list[tuple[int, int, int, str]] = []

    def add(self, place: str, message: str, *, order: int = 0) -> None:
        """Notes a fault at a place (``train.jsonl:12``); the list is sorted by ``order``, the line's number."""
        self._note(order, f"{place}: {message}")
        self.count += 1

    def extend(self, error: DataError) -> None:
        """Takes over the faults of a further part of the data."""
        faults, count = (error.faults, error.count) if isinstance(error, FaultyDataError) else ([str(error)], 1)
        self._part += 1
        for order, fault in enumerate(faults):
            self._note(order, fault)
        self.count += count

    def _note(self, order: int, text: str) -> None:
        self._first.append((self._part, order, len(self._first), text))
        if len(self._first) > 50 * LISTED:
            self._first = sorted(self._first)[:LISTED]

    def raise_if_any(self) -> None:
        """Raises what was found.

        Raises:
            FaultyDataError: There is at least one fault.
        """
        if self.count:
            raise FaultyDataError([entry[-1] for entry in sorted(self._first)[:LISTED]], self.count)
