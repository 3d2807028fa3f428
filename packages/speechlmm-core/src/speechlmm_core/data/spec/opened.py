"""What a specification opens: examples of one partition, in one language pair, for one task. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from speechlmm_core.data.examples import Examples
from speechlmm_core.data.spec.config import Destination


@dataclass(frozen=True)
class OpenedDataset:
    """A part of a corpus, ready to be read."""

    name: str
    """Unique within what was opened: `covost2/train/en-de`, or a manifest's name."""
    dataset: str
    """Name of the specification's entry that it belongs to; weights are given by it."""
    task: str | None
    """Name of its task; None where examples of several are mixed."""
    examples: Examples
    """Those that take part, after amount and filters."""
    destination: Destination = "train"
    """What they are for."""
    weight: float | None = None
    """The entry's weight."""
    total: int = 0
    """Records there were before amount and filters."""
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    """How many were left out, by reason."""
