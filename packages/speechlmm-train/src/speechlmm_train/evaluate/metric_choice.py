"""Which metrics predictions are scored with: those of their tasks, or what the user asks for. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.metric import Answer, MetricConfig, metrics
from speechlmm_core.interfaces.task import get_task
from speechlmm_core.registry import nearest
from speechlmm_train.evaluate.prediction import Prediction


@dataclass(frozen=True)
class MetricChoice:
    """The metrics to compute."""

    chosen: Mapping[str, MetricConfig] = field(default_factory=dict[str, MetricConfig])
    """By name, in place of the tasks' own; empty for those."""
    normaliser: str | None = None
    """Normaliser of the metrics that have one."""

    @classmethod
    def of(cls, written: Sequence[str], normaliser: str | None = None) -> MetricChoice:
        """What was asked for on the command line.

        Args:
            written: Names of metrics, with options where there are some (`bleu:tokenize=char,lowercase=true`).
            normaliser: Normaliser of the metrics that have one.

        Raises:
            ConfigError: There is no such metric or option.
        """
        own = cls({}, normaliser)
        chosen: dict[str, MetricConfig] = {}
        for one in written:
            name, _, rest = one.partition(":")
            options: dict[str, Any] = {}
            for option in filter(None, rest.split(",")):
                key, equals, text = option.partition("=")
                if not equals:
                    raise ConfigError(f"--metric {one!r}: expected NAME or NAME:OPTION=VALUE,…, got {option!r}")
                options[key.strip()] = yaml.safe_load(text)
            chosen[name.strip()] = own.metric(name.strip(), options)
        return cls(chosen, normaliser)

    def names(self, prediction: Prediction) -> Iterable[str]:
        """Names of the metrics for a prediction, the headline first."""
        if self.chosen:
            return self.chosen
        return task_metrics(prediction.task) if prediction.metrics is None else prediction.metrics

    def metric(self, name: str, options: Mapping[str, Any] | None = None) -> MetricConfig:
        """The metric of a name.

        Raises:
            ConfigError: There is none, or it has no such option.
        """
        if name in self.chosen:
            return self.chosen[name]
        # Reading what is installed takes milliseconds, and evaluations ask often.
        if name not in metrics.loaded and name not in (known := metrics.names()):
            raise ConfigError(
                f"no installed package provides the metric {name!r}{nearest(name, known)} "
                f"(available: {', '.join(known)})"
            )
        try:
            found = metrics.validate({"type": name, **(options or {})})
            if self.normaliser is not None and "normaliser" in type(found).model_fields:
                found = type(found).model_validate({**found.model_dump(), "normaliser": self.normaliser})
        except (PydanticCustomError, ValidationError) as exc:
            raise ConfigError(f"metric {name!r}: {' '.join(str(exc).split())}") from exc
        return found

    def check(self, asked: Iterable[tuple[str, Sequence[str], str | None]]) -> None:
        """Sees that metrics can be computed, before anything is generated.

        Args:
            asked: Tasks, their metrics, and languages of the answers.

        Raises:
            ConfigError: A task's metric is not installed.
            MissingDependencyError: A library that it needs is not installed.
        """
        for task, names, language in dict.fromkeys((task, tuple(names), language) for task, names, language in asked):
            for name in self.chosen or names:
                try:
                    metric = self.metric(name)
                except ConfigError as exc:
                    raise ConfigError(f"task {task!r} is scored with {name!r}: {exc}") from exc
                metric.statistics([])
                metric.signature_for([Answer("", ("",), language=language)])


@lru_cache(maxsize=256)
def task_metrics(name: str) -> tuple[str, ...]:
    """Names of a task's metrics.

    Raises:
        ConfigError: No installed package provides the task.
    """
    return get_task(name).metrics
