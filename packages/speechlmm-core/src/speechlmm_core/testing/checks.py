"""Named checks, how they are collected from a kit, and how tensors are compared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., None])


@dataclass(frozen=True)
class Check:
    """One demand of a contract. Call it to test it."""

    name: str
    """Short name, as in a test's id."""
    demand: str
    """What is demanded, in a sentence."""
    body: Callable[[], None] = field(repr=False)
    subject: str = ""
    """The component under test."""

    def __call__(self) -> None:
        """Tests the demand.

        Raises:
            AssertionError: It is not met, or the component failed while it was tested.
        """
        try:
            self.body()
        except Exception as exc:
            found = str(exc) if isinstance(exc, AssertionError) else f"{type(exc).__name__}: {exc}"
            raise AssertionError(f"{self.subject} fails {self.name!r}: {self.demand} Found: {found}") from exc

    def __str__(self) -> str:
        return self.name


def check(method: F) -> F:
    """Marks a kit's method as a check; its docstring's first line is the demand."""
    method.__dict__["is_check"] = True
    return method


def collect(kit: Any, subject: str, suffix: str = "") -> list[Check]:
    """The checks of a kit, those of its base class first; the suffix tells kits of one component apart."""
    found: dict[str, Check] = {}
    for cls in reversed(type(kit).__mro__):
        for name, member in vars(cls).items():
            if getattr(member, "is_check", False):
                demand = (inspect.getdoc(member) or "").partition("\n")[0]
                found[name] = Check(name + suffix, demand, getattr(kit, name), subject)
    return list(found.values())


def select(checks: Iterable[Check], skip: Collection[str]) -> list[Check]:
    """The checks but for those skipped by name (`padding_amount` also skips `padding_amount.video`).

    Raises:
        ValueError: A name to skip is not a check's.
    """
    chosen = list(checks)
    unknown = set(skip) - {one.name for one in chosen} - {one.name.partition(".")[0] for one in chosen}
    if unknown:
        raise ValueError(f"no such check: {sorted(unknown)} (checks: {', '.join(one.name for one in chosen)})")
    return [one for one in chosen if not {one.name, one.name.partition(".")[0]} & set(skip)]


def run_all(checks: Iterable[Check]) -> None:
    """Runs every check, and reports all that fail together.

    Raises:
        AssertionError: One line for each check that fails.
    """
    faults: list[str] = []
    first: AssertionError | None = None
    for one in checks:
        try:
            one()
        except AssertionError as exc:
            faults.append(str(exc))
            first = first or exc
    if faults:
        raise AssertionError("\n".join(faults)) from first


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, relative to the largest expected value; infinite where anything is not finite."""
    if not expected.numel():
        return 0.0
    got, expected = got.detach().double(), expected.detach().double()
    if not (torch.isfinite(got).all() and torch.isfinite(expected).all()):
        return float("inf")
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def assert_close(got: Tensor, expected: Tensor, what: str, tolerance: float = 2e-4) -> None:
    """Asserts that two tensors have one shape, are finite, and agree within a relative tolerance."""
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    off = difference(got, expected)
    assert off <= tolerance, f"{what}: differs by {off:.2g} of the largest value (allowed: {tolerance:.0e})"


def assert_same(got: Tensor, expected: Tensor, what: str) -> None:
    """Asserts that two tensors are equal bit by bit, a NaN equalling a NaN."""
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"{what}: {got.dtype}, expected {expected.dtype}"
    both_nan = got.isnan() & expected.isnan()
    assert bool(((got == expected) | both_nan).all()), f"{what}: values differ"
