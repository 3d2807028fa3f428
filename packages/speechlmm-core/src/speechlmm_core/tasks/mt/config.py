"""Translation of text. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from speechlmm_core.tasks.prompted.config import lacks_languages, named_languages
from speechlmm_core.tasks.text import TextTaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class MTTaskConfig(TextTaskConfig):
    """Translation: the answer is `source_text` in another language."""

    type: Literal["mt"] = "mt"

    fields: ClassVar[tuple[str, ...]] = ("source_language", "target_language", "text")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("bleu", "chrf")

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Example` without which it cannot be trained."""
        return ("source_text", "text", "source_language", "target_language")

    def values(self, example: Example, language: str) -> dict[str, str]:
        """The text, and the languages' names in the prompt's language."""
        return {**super().values(example, language), **named_languages(example, language)}

    def lack(self, example: Example, *, with_answer: bool) -> str | None:
        """What an example lacks to be asked about or, with its answer, to be learnt from."""
        return super().lack(example, with_answer=with_answer) or lacks_languages(self.type, example)
