"""The interface of a dataset reader. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from speechlmm_core.registry import ComponentConfig, Registry

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class DatasetConfig(ComponentConfig, ABC):
    """Where examples come from; `read` opens them as a random-access sequence."""

    @abstractmethod
    def read(self, base: Path) -> Sequence[Example]:
        """Opens the dataset; relative paths start at ``base``.

        Raises:
            DataError: What is wrong with the data, every fault with its place.
        """


datasets: Registry[DatasetConfig] = Registry("dataset", DatasetConfig)
AnyDataset = Annotated[DatasetConfig, datasets]
