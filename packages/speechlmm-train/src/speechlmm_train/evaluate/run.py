"""Evaluates a saved model on datasets: what `speechlmm-train evaluate` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from speechlmm_core.checkpoint.load import read_model_config, resolve_model_path
from speechlmm_core.data.chats import task_for
from speechlmm_core.data.examples import Examples, SubsetExamples
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.errors import DataError
from speechlmm_core.inference.device import device_arguments
from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_core.inference.options import GenerationOptions
from speechlmm_train.evaluate.evaluate import predict
from speechlmm_train.evaluate.metric_choice import MetricChoice
from speechlmm_train.evaluate.output import EvaluationFolder, check_questions, model_fingerprint
from speechlmm_train.evaluate.prediction import Prediction, write_predictions
from speechlmm_train.evaluate.questions import Keys, questions
from speechlmm_train.evaluate.report_files import write_reports
from speechlmm_train.evaluate.score import report_on


@dataclass(frozen=True)
class EvaluationRun:
    """What is to be done."""

    model_path: Path
    output_dir: Path
    options: GenerationOptions = field(default_factory=GenerationOptions)
    choice: MetricChoice = field(default_factory=MetricChoice)
    batch_size: int | Literal["auto"] = "auto"
    device: str = "auto"
    dtype: str = "auto"
    limit: int | None = None
    """Only the first so many examples of each dataset."""
    worst: int = 10
    """Examples of each dataset on the page."""
    resume: bool = False
    overwrite: bool = False
    progress: bool = False


def evaluate_datasets(run: EvaluationRun, open_data: Callable[[], Sequence[OpenedDataset]]) -> dict[str, Any]:
    """Answers the examples of datasets, and writes predictions and reports.

    Args:
        run: What is to be done.
        open_data: Opens the datasets; called once the folder and the device are known to be there.

    Returns:
        The report.

    Raises:
        CheckpointError: The model cannot be loaded.
        DataError: The data are wrong, or there are none.
        ConfigError: There is no such device or metric, the folder holds an earlier evaluation, or one of something
            else that is to be gone on with.
    """
    device = device_arguments(run.device)
    folder = EvaluationFolder(run.output_dir)
    folder.check(resume=run.resume, overwrite=run.overwrite)
    checkpoint = resolve_model_path(run.model_path)
    read_model_config(checkpoint)  # says what is wrong before data are read
    datasets = {one.name: _limited(one.examples, run.limit) for one in open_data()}
    for name, examples in datasets.items():
        _check(name, examples, run.choice)
    about = _about(run, checkpoint, datasets)
    kept = folder.kept(about) if run.resume else {}
    found = {key: kept[key] for key in _keys(datasets, kept, folder.predictions)} if kept else {}
    total = sum(map(len, datasets.values()))
    engine = None
    if len(found) < total:
        engine = InferenceEngine.from_pretrained(str(run.model_path), **device, dtype=run.dtype)
    folder.begin(about, kept)  # only now: a model that cannot be loaded must not cost an earlier evaluation
    keys = Keys()
    if engine is not None:
        bar = tqdm(total=total, initial=len(found), unit="example", disable=not run.progress, dynamic_ncols=True)
        with bar, folder.append() as file:
            for name, examples in datasets.items():
                bar.set_description(name)
                for prediction in predict(
                    engine,
                    examples,
                    dataset=name,
                    options=run.options,
                    batch_size=run.batch_size,
                    done=kept.keys(),
                    ordered=False,
                    keys=keys,
                ):
                    file.write(prediction.line)
                    file.flush()
                    found[prediction.key] = prediction
                    bar.update()
    predictions = [found[key] for key in keys.given or found]
    write_predictions(folder.predictions, predictions)  # they came as they were ready
    report = report_on(predictions, run.choice)
    write_reports(folder, report, predictions, run.choice, worst=run.worst, title=str(run.model_path))
    return report


def _limited(examples: Examples, limit: int | None) -> Examples:
    return examples if limit is None else SubsetExamples(examples, range(min(limit, len(examples))))


def _check(name: str, examples: Examples, choice: MetricChoice) -> None:
    """Looks at a dataset's examples: what is wrong with a task or a language shows before a model is loaded.

    Those that cannot be read are passed over; each says in its own row why.

    Raises:
        DataError: There is none.
        ConfigError: The first readable one's task has no prompts in its language, or a metric is not installed.
        MissingDependencyError: A library that a metric needs for some language is not installed.
    """
    if not len(examples):
        raise DataError(f"dataset {name!r} holds no example to evaluate on")
    asked: dict[tuple[str, tuple[str, ...], str | None], None] = {}
    tried = False
    for number in range(len(examples)):
        try:
            example = examples[number]
            if not tried:
                examples.chat(number, with_answer=False)
                tried = True
        except DataError:
            continue
        task = task_for(example)
        asked[task.type, tuple(task.metrics), example.target_language or example.source_language] = None
    choice.check(asked)


def _about(run: EvaluationRun, checkpoint: Path, datasets: dict[str, Examples]) -> dict[str, Any]:
    return {
        "model": model_fingerprint(checkpoint),
        "options": {**run.options.model_dump(mode="json"), "dtype": run.dtype},
        "datasets": {name: len(examples) for name, examples in datasets.items()},
    }


def _keys(datasets: dict[str, Examples], kept: dict[str, Prediction], path: Path) -> list[str]:
    """Keys of the examples that are kept, in order. They must be of the same questions.

    Raises:
        ConfigError: The data changed.
    """
    found: list[str] = []
    keys = Keys()
    for name, examples in datasets.items():
        for question, _ in questions(examples, name, keys):
            if question.key in kept:
                check_questions(kept, question, path)
                found.append(question.key)
    return found
