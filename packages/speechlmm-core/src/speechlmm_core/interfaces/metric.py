"""The interface of an evaluation metric. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

from speechlmm_core.registry import ComponentConfig, Registry


class MetricConfig(ComponentConfig, ABC):
    """A metric over a whole corpus of references and hypotheses."""

    @abstractmethod
    def compute(self, references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
        """The metric's values by name (rates as fractions), with the counts they rest on."""


metrics: Registry[MetricConfig] = Registry("metric", MetricConfig)
AnyMetric = Annotated[MetricConfig, metrics]
