"""What the tasks from speech to text have in common. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from speechlmm_core.chat.messages import Message
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.task import TaskConfig

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example

SOUND_AND_PICTURE = {"audio", "video"}
"""Inputs that hold the same words where an example has both and nothing else."""


class SpeechTaskConfig(TaskConfig):
    """A task that hears media, is asked, and answers in text."""

    prompts_path: str | None = None
    """Your own wordings beside the shipped ones: a YAML list, or a folder of `<language>.yaml` files."""
    language: str = "en"
    """Language in which the model is asked."""
    system: str | None = None
    """A system message to begin with."""

    def prompt(self, example: Example, draw: int) -> str:
        """The wording for an example."""
        wordings = self.prompts(self.language)
        return wordings[draw % len(wordings)]

    def transcript(self, example: Example) -> str | None:
        """What is spoken."""
        return example.transcript

    def check(self, example: Example) -> str | None:
        """What an example lacks for this task, or None when it has everything."""
        if not example.media:
            return f"task {self.type!r} needs a medium (`audio`, `video`), got none"
        if not (example.text or "").strip():
            return f"task {self.type!r} needs a `text`, the answer, got {example.text!r}"
        return None

    def messages(
        self, example: Example, *, draw: int = 0, with_answer: bool = True, shots: Sequence[Example] = ()
    ) -> list[Message]:
        """The chat for an example: media first, then the prompt, then the answer.

        Args:
            example: The example; its single medium gets the transcript, where it has none of its own, and so do the
                sound and the picture of one recording.
            draw: A number drawn from (seed, epoch, index); picks the wording, 0 being the first.
            with_answer: Whether the assistant's answer is appended (training) or left to the model.
            shots: Examples that are shown first, with their answers.

        Raises:
            DataError: The example lacks what the task needs.
        """
        fault = self.check(example if with_answer else example.model_copy(update={"text": example.text or "?"}))
        if fault:
            raise DataError(f"example {example.id!r}: {fault}")
        content: list[dict[str, Any]] = [{"type": name, **item} for name, item in example.media.items()]
        spoken = self.transcript(example)
        if spoken is not None and (len(content) == 1 or example.media.keys() == SOUND_AND_PICTURE):
            for item in content:
                item.setdefault("transcript", spoken)
        content.append({"type": "text", "text": self.prompt(example, draw)})
        found = [] if self.system is None else [Message.model_validate({"role": "system", "content": self.system})]
        for shot in shots:
            found += [m for m in self.messages(shot, draw=draw) if m.role != "system"]
        found.append(Message(role="user", content=content))
        if with_answer:
            found.append(Message.model_validate({"role": "assistant", "content": example.text}))
        return found
