"""What the tasks from speech to text have in common. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speechlmm_core.tasks.prompted.config import Content, PromptedTaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example

SOUND_AND_PICTURE = {"audio", "video"}
"""Inputs that hold the same words where an example has both and nothing else."""


class SpeechTaskConfig(PromptedTaskConfig):
    """A task that hears media, is asked, and answers in text: media first, then the prompt, then the answer."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Example` without which it cannot be trained."""
        return ("media", "text")

    def transcript(self, example: Example) -> str | None:
        """What is spoken.

        The example's single medium gets it, where it has none of its own, and so do the sound and the picture of one
        recording.
        """
        return example.transcript

    def media(self, example: Example) -> dict[str, dict[str, Any]]:
        """The media that the task looks at, by input."""
        return example.media

    def lack(self, example: Example, *, with_answer: bool) -> str | None:
        """What an example lacks to be asked about or, with its answer, to be learnt from."""
        if not self.media(example):
            return f"task {self.type!r} needs a medium (`audio`, `video`), got none"
        if with_answer and not self.answer(example):
            return f"task {self.type!r} needs a `text`, the answer, got {example.text!r}"
        return None

    def answer(self, example: Example) -> str | Content:
        """The assistant's message."""
        return (example.text or "").strip() and (example.text or "")

    def content(self, example: Example, prompt: str) -> Content:
        """The user's message about an example."""
        media = self.media(example)
        found: Content = [{**item, "type": name} for name, item in media.items()]
        spoken = self.transcript(example)
        if spoken is not None and (len(found) == 1 or media.keys() == SOUND_AND_PICTURE):
            for item in found:
                item.setdefault("transcript", spoken)
        found.append({"type": "text", "text": prompt})
        return found
