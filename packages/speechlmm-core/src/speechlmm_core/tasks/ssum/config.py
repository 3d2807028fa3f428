"""Summaries of speech. Imports no torch."""

from __future__ import annotations

from typing import Literal

from speechlmm_core.tasks.speech import SpeechTaskConfig


class SSUMTaskConfig(SpeechTaskConfig):
    """Summing up speech: the answer is a summary of what is said, so the transcript is separate."""

    type: Literal["ssum"] = "ssum"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("rouge",)
