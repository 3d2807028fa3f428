"""Generates answers for a dataset with the inference engine and scores them with the metrics of their tasks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import as_examples
from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_core.inference.options import GenerationOptions, Request
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.evaluate.prediction import Prediction, write_predictions
from speechlmm_train.evaluate.questions import Keys, questions
from speechlmm_train.evaluate.score import score

__all__ = ["Evaluation", "Prediction", "evaluate", "predict", "score"]


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
    dataset: str = "",
) -> Evaluation:
    """Answers every example and scores the answers; one that fails counts as an empty answer.

    Args:
        model: The model.
        processor: Its processor.
        examples: The examples; those without an answer to compare with are answered and not scored.
        options: How to generate; greedy by default.
        batch_size: Rows of a batch, or `auto`.
        predictions_path: JSONL file for the answers, written atomically.
        dataset: Name of the dataset, for the predictions.

    Raises:
        ConfigError: A task's metric is not installed.
        DataError: A metric has no number for some answers, which are named.
    """
    started = time.perf_counter()
    engine = InferenceEngine(model, processor)
    predictions = list(predict(engine, examples, dataset=dataset, options=options, batch_size=batch_size))
    if predictions_path is not None:
        # The same answers are the same file, whatever the time they took.
        write_predictions(predictions_path, [one.model_copy(update={"seconds": 0.0}) for one in predictions])
    return Evaluation(predictions, score(predictions), time.perf_counter() - started)


def predict(
    engine: InferenceEngine,
    examples: Sequence[Example],
    *,
    dataset: str = "",
    options: GenerationOptions | None = None,
    batch_size: int | Literal["auto"] = "auto",
    done: Collection[str] = (),
    ordered: bool = True,
    keys: Keys | None = None,
) -> Iterator[Prediction]:
    """Answers examples.

    The prompts are the first of each task's wordings, so that every call asks the same.

    Args:
        engine: The model.
        examples: The examples, made when they are asked for.
        dataset: Name of the dataset.
        options: How to generate; greedy by default.
        batch_size: Rows of a batch, or `auto`.
        done: Keys of those that are left out.
        ordered: Whether predictions come in the examples' order; otherwise as soon as they are there.
        keys: Gives the examples' keys; the same one for all datasets of an evaluation.

    Yields:
        One prediction per example; what is wrong with it is its `error`.
    """
    pending: dict[str, Prediction] = {}
    faulty: deque[tuple[int, Prediction]] = deque()
    count = 0

    def requests() -> Iterator[Request]:
        nonlocal count
        for question, messages in questions(as_examples(examples), dataset, keys):
            if question.key in done:
                continue
            if messages is None:
                faulty.append((count, question))
            else:
                count += 1
                pending[question.key] = question
                yield Request(messages, question.key)

    results = engine.run(requests(), options=options, batch_size=batch_size, ordered=ordered)
    given = 0
    with closing(results):  # pyright: ignore[reportArgumentType]  # a generator
        for result in results:
            while faulty and (not ordered or faulty[0][0] <= given):
                yield faulty.popleft()[1]
            question = pending.pop(result.id)
            given += 1
            answer = {
                "text": result.text,
                "error": result.error,
                "duration": None if result.duration is None else round(result.duration, 4),
                "num_tokens": result.num_tokens,
                "complete": result.complete,
                "seconds": round(result.seconds, 6),
            }
            yield question.model_copy(update=answer)
    yield from (question for _, question in faulty)
