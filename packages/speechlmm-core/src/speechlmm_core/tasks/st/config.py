"""Speech translation. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from speechlmm_core.tasks.prompted.config import lacks_languages, named_languages
from speechlmm_core.tasks.speech import SpeechTaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class STTaskConfig(SpeechTaskConfig):
    """Speech translation: the answer is the translation of what is spoken, so the transcript is separate."""

    type: Literal["st"] = "st"

    fields: ClassVar[tuple[str, ...]] = ("source_language", "target_language")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("bleu", "chrf")

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Example` without which it cannot be trained."""
        return ("media", "text", "source_language", "target_language")

    def values(self, example: Example, language: str) -> dict[str, str]:
        """The languages' names in the prompt's language."""
        return named_languages(example, language)

    def lack(self, example: Example, *, with_answer: bool) -> str | None:
        """What an example lacks to be asked about or, with its answer, to be learnt from."""
        return super().lack(example, with_answer=with_answer) or lacks_languages(self.type, example)
