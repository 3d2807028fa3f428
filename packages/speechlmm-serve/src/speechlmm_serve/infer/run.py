"""Runs a task over inputs and writes a line for each, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from speechlmm_serve.infer.inputs import Input, Inputs
from speechlmm_serve.infer.output import open_output, read_done, write_record
from speechlmm_serve.task_prompt import TaskPrompt

if TYPE_CHECKING:
    from speechlmm_core.inference.engine import InferenceEngine
    from speechlmm_core.inference.options import GenerationOptions, Request, Result


def run_inference(
    engine: InferenceEngine,
    inputs: Inputs,
    prompt: TaskPrompt | None,
    *,
    options: GenerationOptions,
    batch_size: int | Literal["auto"] = "auto",
    output: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> int:
    """Answers every input; one that fails is a line with its error.

    Args:
        engine: The model.
        inputs: What to run on.
        prompt: The task; None where the inputs bring theirs along.
        options: How to generate.
        batch_size: Rows of a batch, or `auto`.
        output: File for the lines; standard output if None.
        resume: Keep the lines of `output` that succeeded, and run the rest.
        progress: Show a progress bar on standard error.

    Returns:
        How many inputs failed.

    Raises:
        DataError: What is to be resumed is no output of `infer`, or is of another task.
    """
    done: dict[str, dict[str, Any]] = {}
    if output is not None and resume:
        done = read_done(output, None if prompt is None else about(prompt))
    todo = (_request(one, prompt) for one in inputs if one.key not in done and one.error is None)
    results = engine.run(todo, options=options, batch_size=batch_size)
    failed = 0
    with (
        closing(results),  # pyright: ignore[reportArgumentType]  # a generator
        open_output(output, resume=resume) as file,
        tqdm(total=len(inputs), unit="file", disable=not progress, dynamic_ncols=True) as bar,
    ):
        for record in _records(inputs, done, results, prompt):
            failed += record["error"] is not None
            write_record(file, record)
            bar.update()
    return failed


def about(prompt: TaskPrompt) -> dict[str, Any]:
    """What of the call stands on every line."""
    given = {name: getattr(prompt, name) for name in ("source_language", "target_language", "question")}
    return {"task": prompt.task.type, **{name: value for name, value in given.items() if value is not None}}


def about_example(one: Input) -> dict[str, Any]:
    """What of an input's dataset stands on its line."""
    example = one.example
    names = ("task", "source_language", "target_language")
    given = {} if example is None else {name: getattr(example, name) for name in names}
    return {"dataset": one.dataset, **{name: value for name, value in given.items() if value is not None}}


def _request(one: Input, prompt: TaskPrompt | None) -> Request:
    from speechlmm_core.inference.options import Request

    if one.chat is not None or prompt is None:
        return Request(list(one.chat or ()), one.key)
    return Request(prompt.messages(one.media, one.example), one.key)


def _records(
    inputs: Inputs, done: Mapping[str, dict[str, Any]], results: Iterator[Result], prompt: TaskPrompt | None
) -> Iterator[dict[str, Any]]:
    from speechlmm_core.inference.options import Result

    for one in inputs:
        key = one.key
        if key in done:
            yield done[key]
            continue
        result = Result(key, None, error=one.error) if one.error is not None else next(results)
        assert result.id == key
        example = one.example
        yield {
            "path": one.path or None,
            "text": result.text,
            "duration": None if result.duration is None else round(result.duration, 4),
            "error": result.error,
            "num_tokens": result.num_tokens,
            "complete": result.complete if result.error is None else None,
            **({"id": example.id} if example and example.id else {}),
            **({"reference": example.text} if example and example.text is not None else {}),
            **(about_example(one) if prompt is None else about(prompt)),
            "key": key,
        }
