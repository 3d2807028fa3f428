"""The interface of a dataset reader. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from speechlmm_core.registry import ComponentConfig, Registry

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


@dataclass(frozen=True)
class Selection:
    """The part of a corpus that is read. What a reader's layout does not tell apart, it passes over."""

    partition: str | None = None
    """Name of the partition (`train-clean-100`); None for a corpus without any."""
    source_language: str | None = None
    """Language that is spoken; None for all."""
    target_language: str | None = None
    """Language of the answer, where it is another; None for all."""
    task: str | None = None
    """Name of the task the examples are for, where the specification names one."""
    limit: int | None = None
    """How many records are wanted from the start; for readers that fetch what they read."""


EVERYTHING = Selection()


class DatasetConfig(ComponentConfig, ABC):
    """Where examples come from; `read` opens them as a random-access sequence."""

    strict: ClassVar[bool] = False
    """Whether an example that its task cannot use is a fault to be mended, as in a manifest of the user's own; else it
    is left out and counted."""

    @abstractmethod
    def read(self, base: Path, selection: Selection = EVERYTHING) -> Sequence[Example]:
        """Opens the dataset, or a part of it; relative paths start at ``base``.

        Raises:
            DataError: What is wrong with the data, every fault with its place.
        """

    def partitions(self, base: Path) -> list[str] | None:
        """Names of the partitions that are there; empty where the layout has none, and passes over a selection's.

        None where only `read` finds out, and refuses one that is not there.
        """
        return []

    @property
    def provides(self) -> frozenset[str] | None:
        """Fields of `Example` that the reader fills (`text`, `fields.intent`, `media.audio`); None if it cannot tell.

        A specification whose task needs others is refused before anything is read.
        """
        return None


datasets: Registry[DatasetConfig] = Registry("dataset", DatasetConfig)
AnyDataset = Annotated[DatasetConfig, datasets]
