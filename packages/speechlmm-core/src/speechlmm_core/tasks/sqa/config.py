"""Spoken question answering. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from speechlmm_core.tasks.prompted.config import Content
from speechlmm_core.tasks.prompts import read_prompts
from speechlmm_core.tasks.speech import SpeechTaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class SQATaskConfig(SpeechTaskConfig):
    """Answering a question (`instruction`) about what is heard; without an `instruction`, the question is spoken.

    A `source_text` is shown before the question. The answer is `text`, or the first of `fields.answers`; each of them
    is right.
    """

    type: Literal["sqa"] = "sqa"
    spoken_prompts_path: str | None = None
    """Your own wordings for spoken questions, as `prompts_path` gives those for written ones."""

    fields: ClassVar[tuple[str, ...]] = ("question",)
    paths: ClassVar[tuple[str, ...]] = ("prompts_path", "spoken_prompts_path")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("exact_match", "token_f1")

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Example` without which it cannot be trained."""
        return ("media", "text|fields.answers")

    def spoken_prompts(self, language: str = "en") -> list[str]:
        """The wordings for questions that are spoken.

        Raises:
            ConfigError: No prompts in that language, or a file of them is wrong.
        """
        return read_prompts(self._package, language, self.spoken_prompts_path, folder="spoken_prompts")

    def wordings(self, example: Example, language: str) -> list[str]:
        """The wordings that are for an example."""
        return self.prompts(language) if _question(example) else self.spoken_prompts(language)

    def values(self, example: Example, language: str) -> dict[str, str]:
        """The question, for a wording's braces."""
        question = _question(example)
        return {"question": question} if question else {}

    def content(self, example: Example, prompt: str) -> Content:
        """The user's message about an example."""
        found = super().content(example, prompt)
        if (example.source_text or "").strip():
            found.insert(-1, {"type": "text", "text": f"{(example.source_text or '').strip()}\n\n"})
        return found

    def answer(self, example: Example) -> str:
        """The answer that is trained on."""
        return next(iter(self.references(example)), "")

    def references(self, example: Example) -> tuple[str, ...]:
        """Every answer that is right."""
        given: Any = example.fields.get("answers")
        if isinstance(given, dict):  # as SQuAD has it
            given = cast("dict[str, Any]", given).get("text")
        listed = [given] if isinstance(given, str) else cast("list[Any]", given) if isinstance(given, list) else []
        found: list[Any] = [example.text, *listed]
        return tuple(dict.fromkeys(str(one).strip() for one in found if one is not None and str(one).strip()))

    def lack(self, example: Example, *, with_answer: bool) -> str | None:
        """What an example lacks to be asked about or, with its answer, to be learnt from."""
        fault = super().lack(example, with_answer=False)
        if not fault and with_answer and not self.references(example):
            return f"task {self.type!r} needs a `text` or `fields.answers`, the answer, got {example.text!r}"
        return fault


def _question(example: Example) -> str:
    return (example.instruction or "").strip()
