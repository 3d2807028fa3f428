"""Speech recognition. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from speechlmm_core.tasks.speech import SpeechTaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class ASRTaskConfig(SpeechTaskConfig):
    """Speech recognition: the answer is what is spoken."""

    type: Literal["asr"] = "asr"
    transcribes: ClassVar[bool] = True

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("wer", "cer")

    def transcript(self, example: Example) -> str | None:
        """What is spoken; the answer itself where the manifest gives nothing else."""
        return example.text if example.transcript is None else example.transcript
