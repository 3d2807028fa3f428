"""Speech translation. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from speechlmm_core.tasks.languages import language_name, unknown_language
from speechlmm_core.tasks.prompts import read_prompts
from speechlmm_core.tasks.speech import SpeechTaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example

_FIELDS = ("source_language", "target_language")


class STTaskConfig(SpeechTaskConfig):
    """Speech translation: the answer is the translation of what is spoken, so the transcript is separate."""

    type: Literal["st"] = "st"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("wer", "cer")

    def prompts(self, language: str = "en") -> list[str]:
        """The wordings of the task's prompt in a language, with `{source_language}` and `{target_language}`."""
        return read_prompts(__package__ or "", language, self.prompts_path, _FIELDS)

    def prompt(self, example: Example, draw: int) -> str:
        """The wording for an example, with the languages' names."""
        names = {field: language_name(getattr(example, field) or "") for field in _FIELDS}
        return super().prompt(example, draw).format(**names)

    def check(self, example: Example) -> str | None:
        """What an example lacks for this task, or None when it has everything."""
        fault = super().check(example)
        if fault:
            return fault
        for field in _FIELDS:
            code = getattr(example, field)
            if not code:
                return f"task 'st' needs a `{field}` (a code like 'en'), got {code!r}"
            if language_name(code) is None:
                return unknown_language(code)
        return None
