"""A prediction: one answer with all that is needed to score it again and to play its media. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speechlmm_core.checkpoint.atomic import atomic_write
from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.metric import Answer

PREDICTIONS = "predictions.jsonl"
"""Name of the file in an evaluation's folder."""


LARGEST = 10**12
Seconds = Annotated[float, Field(ge=0, le=LARGEST)]
"""Some thousands of years at most, so that sums stay numbers."""


class Prediction(BaseModel):
    """One row of `predictions.jsonl`."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    key: str
    """Unique name: the dataset's and the example's."""
    dataset: str = ""
    """Name of the dataset."""
    id: str = ""
    """The example's name in its dataset."""
    task: str
    """Name of the task."""
    metrics: tuple[str, ...] | None = None
    """Metrics of the task, the headline first; None for those of the task of that name."""
    source_language: str | None = None
    """Language that is spoken or read."""
    target_language: str | None = None
    """Language of the answer, where it is another."""
    references: tuple[str, ...] = ()
    """Right answers; none where the example has no answer to compare with."""
    source: str | None = None
    """The text that was worked on: the transcript in speech translation."""
    fields: dict[str, Any] = Field(default_factory=dict)
    """Fields of the example that only its task knows."""
    text: str | None = None
    """The model's answer; None where it failed."""
    error: str | None = None
    """Why it failed."""
    duration: Seconds | None = None
    """Seconds of media."""
    num_tokens: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    """Generated tokens, the stop token included."""
    complete: bool = True
    """Whether the answer ended by itself, not at `max_new_tokens`."""
    seconds: Seconds = 0.0
    """Wall clock of the answer's batch, waiting for its media included, divided by the batch's rows."""
    media: tuple[dict[str, Any], ...] = ()
    """Content items of the question (`type`, `path`, `start`, `end`, or a place in a container)."""
    prompt: str = ""
    """The question's text."""

    @property
    def reference(self) -> str:
        """The answer that is trained on; empty if there is none."""
        return self.references[0] if self.references else ""

    @property
    def language(self) -> str | None:
        """Language of the answer."""
        return self.target_language or self.source_language

    @property
    def answer(self) -> Answer:
        """What metrics look at; a failure is an empty answer."""
        return Answer(self.text or "", self.references, self.source, self.language, self.fields)

    @property
    def line(self) -> str:
        """The row as JSON, with its line feed."""
        row = self.model_dump()
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        try:
            text.encode()
        except UnicodeEncodeError:  # a file's name that is no UTF-8
            text = json.dumps(row, allow_nan=False)
        return text + "\n"


def read_predictions(path: Path) -> list[Prediction]:
    """Reads a file of predictions, or that of an evaluation's folder.

    Raises:
        DataError: It cannot be read, lines are no predictions (with their numbers), or two have one key.
    """
    path = path.expanduser()
    path = path / PREDICTIONS if path.is_dir() else path
    found: list[Prediction] = []
    faults = Faults()
    first: dict[str, int] = {}
    try:
        for number, row in _rows(path):
            if isinstance(row, str):
                faults.add(f"{path}:{number}", row, order=number)
                continue
            if row.key in first:
                faults.add(f"{path}:{number}", f"has the key {row.key!r} of line {first[row.key]}", order=number)
            first.setdefault(row.key, number)
            found.append(row)
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise DataError(f"predictions {str(path)!r} cannot be read: {reason}") from exc
    faults.raise_if_any()
    if not found:
        raise DataError(f"{str(path)!r} holds no prediction")
    return found


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Writes a file of predictions atomically."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(prediction.line for prediction in predictions)


def parse_line(line: str) -> Prediction | str:
    """A prediction, or what is wrong with its line."""
    try:
        content = json.loads(line, parse_constant=_refuse)
        return Prediction.model_validate(content)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'line'}: {one['msg']}" for one in errors[:3])
    except (ValueError, RecursionError) as exc:
        return f"is no prediction: {exc}"


def as_json(value: Any) -> Any:
    """A value as JSON holds it: what a corpus' field may be, and no number that is none."""
    if isinstance(value, dict):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    plain = value.tolist() if hasattr(value, "tolist") else str(value)  # of NumPy, or a date
    return as_json(plain)


def _rows(path: Path) -> Iterator[tuple[int, Prediction | str]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, parse_line(line)


def _refuse(name: str) -> Any:
    raise ValueError(f"holds {name}, which is no number; generate this prediction anew")
