"""Spoken language understanding. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from speechlmm_core.errors import DataError
from speechlmm_core.tasks.slu.frame import Frame, intent_of, parse, slots_of, write
from speechlmm_core.tasks.speech import SpeechTaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class SLUTaskConfig(SpeechTaskConfig):
    """Understanding a spoken request: the answer is its intent and its slots, as JSON on one line.

    They are the example's `fields.intent` and `fields.slots`; where there is no intent, its `text` is the line.
    """

    type: Literal["slu"] = "slu"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("intent_accuracy", "slot_f1")

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Example` without which it cannot be trained."""
        return ("media", "fields.intent|text")

    def answer(self, example: Example) -> str:
        """The line that stands for intent and slots."""
        intent = intent_of(example.fields.get("intent"))
        if intent is not None:
            return write(Frame(intent, slots_of(example.fields.get("slots"))))
        frame = parse(example.text or "")
        return "" if frame is None else write(frame)

    def lack(self, example: Example, *, with_answer: bool) -> str | None:
        """What an example lacks to be asked about or, with its answer, to be learnt from."""
        fault = super().lack(example, with_answer=False)
        if fault or not with_answer:
            return fault
        try:
            answer = self.answer(example)
        except DataError as exc:
            return f"task {self.type!r}: {exc}"
        if not answer or not str(example.fields.get("intent", "?")).strip():
            return f"task {self.type!r} needs `fields.intent`, or a `text` that is such a line; got {example.text!r}"
        return None
