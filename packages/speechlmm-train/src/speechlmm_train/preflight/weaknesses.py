"""What is wrong with some examples and does not keep a training from going on: told, and an error where many are so."""

from __future__ import annotations

from speechlmm_core.errors import DataError

TOLERATED = 0.1
"""Share of the examples that were looked at which may have a weakness of one kind."""
NAMED = 3
"""Places that a message names."""


class Weaknesses:
    """Places of examples by what is wrong with them."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: str, place: str) -> None:
        """Notes an example.

        Args:
            kind: What it and others do ("have ..."), and what to do about it.
            place: Where it stands.
        """
        self._counts[kind] = self._counts.get(kind, 0) + 1
        places = self._places.setdefault(kind, [])
        if len(places) < NAMED:
            places.append(place)

    def judge(self, count: int, of: str) -> list[str]:
        """Tells what was found.

        Args:
            count: Examples that were looked at.
            of: Whose examples they are.

        Returns:
            Warnings, of what few examples have.

        Raises:
            DataError: More than `TOLERATED` of them have something in common.
        """
        warnings: list[str] = []
        faults: list[str] = []
        for kind, places in self._places.items():
            number = self._counts[kind]
            named = f"{', '.join(places)}{' and others' if number > len(places) else ''}"
            text = f"{of}: {number} of {count} examples that were looked at {kind} ({named})"
            (faults if number > TOLERATED * count else warnings).append(text)
        if faults:
            raise DataError("\n".join(faults))
        return warnings
