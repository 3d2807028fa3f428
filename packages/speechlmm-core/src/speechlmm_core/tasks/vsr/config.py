"""Lip reading. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from speechlmm_core.tasks.speech import SpeechTaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class VSRTaskConfig(SpeechTaskConfig):
    """Visual speech recognition: the answer is what is said; an example's `audio` is left out."""

    type: Literal["vsr"] = "vsr"
    transcribes: ClassVar[bool] = True

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""
        return ("wer", "cer")

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Example` without which it cannot be trained."""
        return ("media.video", "text")

    def media(self, example: Example) -> dict[str, dict[str, Any]]:
        """The picture."""
        return {name: item for name, item in example.media.items() if name != "audio"}

    def transcript(self, example: Example) -> str | None:
        """What is spoken; the answer itself where the manifest gives nothing else."""
        return example.text if example.transcript is None else example.transcript

    def lack(self, example: Example, *, with_answer: bool) -> str | None:
        """What an example lacks to be asked about or, with its answer, to be learnt from."""
        if example.media and not self.media(example):
            return f"task {self.type!r} needs a `video`, got {', '.join(example.media)}"
        return super().lack(example, with_answer=with_answer)
