"""Generates answers for a dataset with the inference engine and scores them with the metrics of their tasks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from speechlmm_core.checkpoint.atomic import atomic_write
from speechlmm_core.data.chats import question_of
from speechlmm_core.data.example import Example
from speechlmm_core.errors import ConfigError
from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_core.inference.options import GenerationOptions, Request
from speechlmm_core.interfaces.metric import Answer, metrics
from speechlmm_core.interfaces.task import get_task
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor


@dataclass(frozen=True)
class Prediction:
    """One answer beside what was expected."""

    id: str
    task: str
    reference: str
    text: str | None
    error: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Answers and their scores."""

    predictions: list[Prediction]
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """Values of the metrics by task."""
    seconds: float = 0.0

    @property
    def failed(self) -> int:
        """Number of examples that could not be answered."""
        return sum(prediction.error is not None for prediction in self.predictions)

    def report(self) -> dict[str, Any]:
        """The scores with the number of examples and of those that failed."""
        return {"examples": len(self.predictions), "failed": self.failed, "seconds": self.seconds, **self.scores}


def evaluate(
    model: SpeechLMM,
    processor: SpeechLMMProcessor,
    examples: Sequence[Example],
    *,
    options: GenerationOptions | None = None,
    batch_size: int | Literal["auto"] = "auto",
    predictions_path: Path | None = None,
) -> Evaluation:
    """Answers every example and scores the answers; one that fails counts as an empty answer.

    Args:
        model: The model.
        processor: Its processor.
        examples: Examples with answers.
        options: How to generate; greedy by default.
        batch_size: Rows of a batch, or `auto`.
        predictions_path: JSONL file for the answers, written atomically.

    Raises:
        DataError: An example has no answer.
        ConfigError: A task's metric is not installed.
    """
    started = time.perf_counter()
    asked = [question_of(example) for example in examples]
    requests = (Request(messages, i) for i, (messages, _) in enumerate(asked))
    engine = InferenceEngine(model, processor)
    predictions = [
        Prediction(examples[i].id, examples[i].task, asked[i][1], result.text, result.error)
        for i, result in enumerate(engine.run(requests, options=options, batch_size=batch_size))
    ]
    if predictions_path is not None:
        with atomic_write(predictions_path) as temporary:
            temporary.write_text("".join(_lines(predictions)), encoding="utf-8")
    return Evaluation(predictions, score(predictions), time.perf_counter() - started)


def score(predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    """The values of each task's metrics.

    Raises:
        ConfigError: A metric is not installed.
    """
    scores: dict[str, dict[str, float]] = {}
    for task in sorted({prediction.task for prediction in predictions}):
        own = [prediction for prediction in predictions if prediction.task == task]
        answers = [Answer(p.text or "", (p.reference,)) for p in own]
        for name in get_task(task).metrics:
            if name not in metrics.names():
                raise ConfigError(f"task {task!r} is scored with {name!r}, which no installed package provides")
            values = metrics.validate({"type": name}).compute(answers)
            scores.setdefault(task, {}).update(values)
    return scores


def _lines(predictions: Sequence[Prediction]) -> Iterator[str]:
    for prediction in predictions:
        yield json.dumps(vars(prediction), ensure_ascii=False) + "\n"
