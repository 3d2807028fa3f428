"""The intent of a spoken request. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from speechlmm_core.errors import DataError
from speechlmm_core.tasks.slu.frame import intent_of
from speechlmm_core.tasks.speech import SpeechTaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class SLUIntentTaskConfig(SpeechTaskConfig):
    """Understanding a spoken request: the answer is the name of its intent (`fields.intent`, else `text`)."""

    type: Literal["slu_intent"] = "slu_intent"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("intent_accuracy",)

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Example` without which it cannot be trained."""
        return ("media", "fields.intent|text")

    def answer(self, example: Example) -> str:
        """The name of the intent."""
        intent = intent_of(example.fields.get("intent"))
        return (example.text or "").strip() if intent is None else intent

    def lack(self, example: Example, *, with_answer: bool) -> str | None:
        """What an example lacks to be asked about or, with its answer, to be learnt from."""
        fault = super().lack(example, with_answer=False)
        if fault or not with_answer:
            return fault
        try:
            answer = self.answer(example)
        except DataError as exc:
            return f"task {self.type!r}: {exc}"
        if not answer:
            return f"task {self.type!r} needs `fields.intent` (or a `text`), the answer, got {example.text!r}"
        return None
