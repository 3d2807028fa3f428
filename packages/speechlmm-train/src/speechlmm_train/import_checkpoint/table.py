# pyright: strict
"""What became of each tensor of an imported checkpoint, and of each of the model's. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_SHOWN = 3


@dataclass
class Row:
    """One component."""

    loaded: int = 0
    """Tensors that came from the checkpoint."""
    parameters: int = 0
    """Numbers in them."""
    base: int = 0
    """Tensors that stay as in the base checkpoint."""
    new: list[str] = field(default_factory=list[str])
    """Tensors that nothing was found for."""
    unexpected: list[str] = field(default_factory=list[str])
    """Tensors of the checkpoint without a place here."""


@dataclass
class Coverage:
    """What became of the tensors."""

    loaded: list[str] = field(default_factory=list[str])
    """Our names of tensors that were copied."""
    added: list[str] = field(default_factory=list[str])
    """Our names of tensors that something was added to (low-rank adapters)."""
    unexpected: list[str] = field(default_factory=list[str])
    """Their names of tensors without a place here."""
    wrong: list[str] = field(default_factory=list[str])
    """Their names of tensors of another shape, with the shapes."""
    constants: list[str] = field(default_factory=list[str])
    """Their names of tensors that follow from the configuration."""
    rows: dict[str, int] = field(default_factory=dict[str, int])
    """Rows of added tokens that were left out, by our name of the table."""
    table: dict[str, Row] = field(default_factory=dict[str, Row])
    """Rows by component."""

    def finish(self, own: Mapping[str, int], *, component: Callable[[str], str], based: set[str]) -> None:
        """Counts by component.

        Args:
            own: Numbers in each of the model's tensors.
            component: The component of a tensor of the model.
            based: Components that have the weights of a base checkpoint.
        """
        taken = {*self.loaded, *self.added}
        for name, size in own.items():
            part = component(name)
            row = self.table.setdefault(part, Row())
            if name in taken:
                row.loaded += 1
                row.parameters += size
            elif part in based:
                row.base += 1
            else:
                row.new.append(name)
        for name in [*self.unexpected, *self.wrong]:
            self.table.setdefault(name.partition(".")[0], Row()).unexpected.append(name)

    def lines(self, without: Mapping[str, str]) -> list[str]:
        """The table.

        Args:
            without: Components that are not taken over, and why.
        """
        head: tuple[str, ...] = ("component", "loaded", "parameters", "from base", "new", "unexpected")
        cells: list[tuple[str, ...]] = [head]
        for name, row in sorted(self.table.items()):
            numbers = (row.loaded, row.parameters, row.base, len(row.new), len(row.unexpected))
            cells.append((name, *(f"{number:,}" for number in numbers)))
        sums = [sum(values) for values in zip(*map(_numbers, self.table.values()), strict=True)] or [0] * 5
        cells.append(("all", *(f"{number:,}" for number in sums)))
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
        found = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
        for what, names in (
            ("new", [name for row in self.table.values() for name in row.new]),
            ("unexpected", self.unexpected),
            ("of another shape", self.wrong),
        ):
            if names:
                found.append(f"{what}: {shown(names)}")
        found += [
            f"{name}: {count} {'row' if count == 1 else 'rows'} of added tokens left out: no template here has them"
            for name, count in self.rows.items()
        ]
        found += [f"{name} is not taken over: {why}" for name, why in without.items()]
        return found

    def faults(self, *, allow_partial: bool) -> list[str]:
        """What keeps the checkpoint from being taken over."""
        new = [name for row in self.table.values() for name in row.new]
        found = [f"{len(self.wrong)} of another shape ({shown(self.wrong)})"] if self.wrong else []
        if not self.loaded and not self.added:
            return [*found, "nothing in it has a place here"]
        if not allow_partial:
            if self.unexpected:
                found.append(f"{len(self.unexpected)} tensors have no place here ({shown(self.unexpected)})")
            if new:
                found.append(f"{len(new)} tensors would be left at random ({shown(new)})")
        return found


def _numbers(row: Row) -> tuple[int, ...]:
    return row.loaded, row.parameters, row.base, len(row.new), len(row.unexpected)


def shown(names: list[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
