"""Examples as questions to a model: the chat up to the answer, and the prediction that the answer will complete.

Imports no torch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.chats import split_answer, task_for
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import Examples
from speechlmm_core.errors import DataError, SpeechLMMError
from speechlmm_train.evaluate.prediction import Prediction, as_json

_NOT_WRITTEN = ("bytes", "array", "transcript")
"""Parts of a content item that do not go into a row."""
UNANSWERED: dict[str, Any] = {
    **{"text": None, "error": None, "duration": None},
    **{"num_tokens": 0, "complete": True, "seconds": 0.0},
}
"""What the answer fills in."""


class Keys:
    """Keys of questions: `dataset/id`, and `dataset/id#2` for the second of an id; none is given twice.

    The same questions in the same order have the same keys.
    """

    def __init__(self) -> None:
        self.given: dict[str, None] = {}
        self._times: Counter[str] = Counter()

    def new(self, name: str) -> str:
        """A key that is not taken: the name itself, if possible."""
        key = name
        while key in self.given:  # an id may look like the second of another
            self._times[name] += 1
            key = f"{name}#{self._times[name] + 1}"
        self.given[key] = None
        return key


def questions(
    examples: Examples, dataset: str, keys: Keys | None = None
) -> Iterator[tuple[Prediction, list[Message] | None]]:
    """Each example as a prediction that lacks its answer, with the chat that is to be answered.

    Where the chat cannot be made, the prediction's `error` says why, and there is none.

    Args:
        examples: The examples.
        dataset: Name of their dataset.
        keys: Gives the keys; the same one for all datasets of an evaluation.
    """
    keys = Keys() if keys is None else keys
    for number in range(len(examples)):
        messages: list[Message] | None = None
        error: str | None = None
        try:
            example = examples[number]
            try:
                messages = examples.chat(number, with_answer=False)
            except (SpeechLMMError, ValueError) as exc:  # it counts as an empty answer
                error = " ".join(str(exc).split())
            name = example.id or str(number + 1)
            question = question_of(example, messages or (), key="", dataset=dataset, name=name)
        except (SpeechLMMError, ValueError) as exc:
            error = " ".join(str(exc).split()) if error is None else error
            key = keys.new(f"{dataset}#{number + 1}")
            yield Prediction(key=key, dataset=dataset, task="", metrics=(), error=error), None
            continue
        yield question.model_copy(update={"key": keys.new(f"{dataset}/{name}"), "error": error}), messages


def question_of(example: Example, messages: Sequence[Message], *, key: str, dataset: str, name: str) -> Prediction:
    """The prediction of an example, without its answer."""
    task = task_for(example)
    asked = next((message for message in reversed(messages) if message.role in ("user", "text")), None)
    with_media = next((m.media for m in reversed(messages) if m.role in ("user", "text") and m.media), [])
    texts = [] if asked is None else [item["text"] for item in asked.content if item["type"] == "text"]
    return Prediction(
        key=key,
        dataset=dataset,
        id=name,
        task=task.type,
        metrics=task.metrics,
        source_language=example.source_language,
        target_language=example.target_language,
        references=references_of(example),
        source=example.transcript if example.source_text is None else example.source_text,
        fields=as_json(example.fields),
        media=tuple(_written(item) for item in with_media),
        prompt="\n".join(texts),
    )


def references_of(example: Example) -> tuple[str, ...]:
    """Right answers; none where the example has none."""
    if example.messages is None:
        return tuple(text for text in task_for(example).references(example) if text.strip())
    try:
        answer = split_answer(example.messages, example.id)[1]
    except DataError:
        return ()
    return (answer,) if answer.strip() else ()


def same_question(one: Prediction, other: Prediction) -> str | None:
    """The first thing in which two questions differ; None if they are the same."""
    left, right = (p.model_copy(update=UNANSWERED).model_dump() for p in (one, other))
    return next((name for name in left if left[name] != right[name]), None)


def _written(item: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in item.items() if name not in _NOT_WRITTEN}
    path = kept.get("path")
    if path is not None and "://" not in str(path):
        kept["path"] = os.path.abspath(os.path.expanduser(str(path)))
    return as_json(kept)
