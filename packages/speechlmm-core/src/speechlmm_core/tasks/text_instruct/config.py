"""Instructions in text. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from speechlmm_core.tasks.prompted.config import Content, PromptedTaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class TextInstructTaskConfig(PromptedTaskConfig):
    """Following an instruction (`instruction`), which may be about a text (`source_text`).

    The instruction alone is the prompt; where there is a text, wordings say how the two stand together.
    """

    type: Literal["text_instruct"] = "text_instruct"

    fields: ClassVar[tuple[str, ...]] = ("instruction", "text")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("rouge",)

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Example` without which it cannot be trained."""
        return ("instruction", "text")

    def wordings(self, example: Example, language: str) -> list[str]:
        """The wordings that are for an example."""
        return self.prompts(language) if (example.source_text or "").strip() else ["{instruction}"]

    def languages(self, example: Example) -> list[str]:
        """The languages that an example may be asked in; an instruction alone is asked in its own."""
        found = super().languages(example)
        return found if found or (example.source_text or "").strip() else ["en"]

    def values(self, example: Example, language: str) -> dict[str, str]:
        """The instruction and the text, for a wording's braces."""
        return {"instruction": example.instruction or "", "text": example.source_text or ""}

    def lack(self, example: Example, *, with_answer: bool) -> str | None:
        """What an example lacks to be asked about or, with its answer, to be learnt from."""
        if not (example.instruction or "").strip():
            return f"task {self.type!r} needs an `instruction`, got {example.instruction!r}"
        if with_answer and not (example.text or "").strip():
            return f"task {self.type!r} needs a `text`, the answer, got {example.text!r}"
        return None

    def content(self, example: Example, prompt: str) -> Content:
        """The user's message about an example."""
        return [{"type": "text", "text": prompt}]
