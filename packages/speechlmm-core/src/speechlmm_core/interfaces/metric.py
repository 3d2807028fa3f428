"""The interface of an evaluation metric. Imports no torch.

A metric is a table of statistics, a row for each answer, and a function of their sum: what corpus-level rates,
bootstrap confidence intervals and paired significance all need.

Shapes: N answers, S statistics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.registry import ComponentConfig, Registry

Scale = Literal["fraction", "hundred", "number"]
"""What values mean: a `fraction` of 1, shown in per cent; from 0 to a `hundred`; or any other `number`."""


@dataclass(frozen=True)
class Answer:
    """One answer of a model with everything that a metric may look at."""

    text: str
    """What the model answered; empty where it failed."""
    references: tuple[str, ...]
    """Right answers, the one that is trained on first; at least one."""
    source: str | None = None
    """The text that was worked on: the transcript in speech translation."""
    language: str | None = None
    """Language of the answer (BCP 47), which normalisers and tokenisers depend on."""
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of the example that only its task knows."""


class MetricConfig(ComponentConfig, ABC):
    """A metric over a corpus of answers."""

    higher_is_better: ClassVar[bool] = False
    scale: ClassVar[Scale] = "number"
    """How tables show the metric's own value."""

    @abstractmethod
    def statistics(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """Statistics (N, S) of each answer by itself; sums of rows are all that `score` looks at.

        Raises:
            MissingDependencyError: A library that it needs is not installed.
        """

    @abstractmethod
    def score(self, total: NDArray[np.float64]) -> dict[str, float]:
        """The values from summed statistics (S,): first the metric's own, named like its `type`, then its counts.

        Rates are fractions of 1, but for metrics that the field states from 0 to 100 (BLEU, chrF); `scale` says which.
        """

    @property
    def signature(self) -> str:
        """Everything that decides the values: settings, the library and its version (sacreBLEU's own for BLEU)."""
        return self.model_dump_json()

    def signature_for(self, answers: Sequence[Answer]) -> str:
        """The signature where it depends on the answers, on their language or their number of references."""
        return self.signature

    def compute(self, answers: Sequence[Answer]) -> dict[str, float]:
        """The values over all answers."""
        return self.score(self.statistics(answers).sum(axis=0))


metrics: Registry[MetricConfig] = Registry("metric", MetricConfig)
AnyMetric = Annotated[MetricConfig, metrics]
