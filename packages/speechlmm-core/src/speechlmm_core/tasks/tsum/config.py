"""Summaries of texts. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from speechlmm_core.tasks.text import TextTaskConfig


class TSUMTaskConfig(TextTaskConfig):
    """Summing up a text: the answer is a summary of `source_text`, which stands in the prompt."""

    type: Literal["tsum"] = "tsum"

    fields: ClassVar[tuple[str, ...]] = ("text",)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("rouge",)
