"""What the tasks from text to text have in common. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechlmm_core.tasks.prompted.config import Content, PromptedTaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class TextTaskConfig(PromptedTaskConfig):
    """A task that reads `source_text`, is asked about it, and answers in text; every wording holds the text."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Example` without which it cannot be trained."""
        return ("source_text", "text")

    def values(self, example: Example, language: str) -> dict[str, str]:
        """The text, for a wording's braces."""
        return {"text": example.source_text or ""}

    def lack(self, example: Example, *, with_answer: bool) -> str | None:
        """What an example lacks to be asked about or, with its answer, to be learnt from."""
        if not (example.source_text or "").strip():
            return f"task {self.type!r} needs a `source_text` to work on, got {example.source_text!r}"
        if with_answer and not (example.text or "").strip():
            return f"task {self.type!r} needs a `text`, the answer, got {example.text!r}"
        return None

    def content(self, example: Example, prompt: str) -> Content:
        """The user's message about an example."""
        return [{"type": "text", "text": prompt}]
