"""A text task that prepares a language model for speech: it reads words as an adapter's frames would spell them.

Frames of speech repeat a word while it lasts and say nothing in between, as the outputs of CTC do. A language model
that has learnt to drop repeats and blanks from text copies speech with little further training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.example import Example
from speechlmm_core.interfaces.task import TaskConfig, get_task


class DenoiseTaskConfig(TaskConfig):
    """Copies a sentence whose words are repeated and set apart by blanks."""

    type: Literal["denoise"] = "denoise"
    """Name of the task."""
    blank: str = "_"
    """What stands where nothing is said; the same as the CTC objective's blank."""
    max_repeats: Annotated[int, Field(ge=1)] = 3
    """How often a word is said at most."""
    max_blanks: Annotated[int, Field(ge=0)] = 3
    """Blanks after a word at most."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Scored as a transcript."""
        return ("wer",)

    def prompts(self, language: str = "en") -> list[str]:
        """The wordings of the `asr` task: the language model meets the same ones with speech."""
        return get_task("asr").prompts(language)

    def check(self, example: Example) -> str | None:
        """An example needs text."""
        return None if example.text else "`text`, the sentence to copy"

    def messages(
        self, example: Example, *, draw: int = 0, with_answer: bool = True, shots: Sequence[Example] = ()
    ) -> list[Message]:
        """The noisy sentence and a prompt, answered by the sentence."""
        generator = random.Random(draw)
        prompts = self.prompts(example.source_language or "en")
        text = example.text or ""
        frames = self.blank * generator.randint(0, self.max_blanks)
        for word in text.split():
            frames += f" {word}" * generator.randint(1, self.max_repeats)
            frames += self.blank * generator.randint(0, self.max_blanks)
        content = [
            {"type": "text", "text": frames},
            {"type": "text", "text": prompts[draw % len(prompts)]},
        ]
        messages = [Message(role="user", content=content)]
        if with_answer:
            messages.append(Message(role="assistant", content=[{"type": "text", "text": text}]))
        return messages
