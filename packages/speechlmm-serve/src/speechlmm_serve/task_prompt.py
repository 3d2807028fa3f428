"""The messages with which a task asks about a medium or a text. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from speechlmm_core.chat.messages import Message
from speechlmm_core.config import ModelConfig
from speechlmm_core.data.example import Example
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.interfaces.task import TaskConfig, get_task
from speechlmm_core.tasks.names import task_name


def media_input(config: ModelConfig, modality: str) -> str:
    """Name of the model's input that takes files of a modality (`audio`, `video`).

    Raises:
        ConfigError: It has none.
    """
    names = [name for name, towers in config.inputs.items() if towers.encoder.modality == modality]
    if not names:
        raise ConfigError(f"this model takes no {modality}; its inputs are: {', '.join(config.inputs) or 'text only'}")
    return modality if modality in names else names[0]


OPTIONS = {"source_language": "--source-language", "target_language": "--target-language"}
PROBES = ("audio", "video")


@dataclass(frozen=True)
class TaskPrompt:
    """A task with its languages and its question."""

    task: TaskConfig
    source_language: str | None = None
    target_language: str | None = None
    question: str | None = None
    """What is asked about a medium, where the task leaves that open."""

    @classmethod
    def of(
        cls, name: str, source_language: str | None, target_language: str | None, question: str | None = None
    ) -> TaskPrompt:
        """Looks a task up.

        Raises:
            ConfigError: There is no such task, or it asks no question of the user's.
        """
        prompt = cls(get_task(task_name(name)), source_language, target_language, question)
        if question is not None and prompt.task.type != "sqa":
            raise ConfigError(f"--question is for the task 'sqa'; task {prompt.task.type!r} asks in its own words")
        return prompt

    @property
    def takes_text(self) -> bool:
        """Whether the task works on a text, and needs no medium."""
        return self._text_field is not None and not any(need.startswith("media") for need in self.task.needs)

    @property
    def takes_question(self) -> bool:
        """Whether what the user writes about a medium is the task's question."""
        return self.task.type == "sqa"

    def example_of(self, text: str, name: str = "") -> Example:
        """An example of a text that the task works on.

        Raises:
            ConfigError: It works on none.
        """
        if not self.takes_text:
            raise ConfigError(f"task {self.task.type!r} works on no text of its own; give it a file")
        assert self._text_field is not None
        return Example.model_validate({"id": name, self._text_field: text})

    def asking(self, question: str) -> TaskPrompt:
        """The same task with a question."""
        return TaskPrompt(self.task, self.source_language, self.target_language, question)

    def check(self, example: Example | None = None, *, names: tuple[str, ...] = PROBES) -> None:
        """Tries the task out.

        Args:
            example: What a manifest says; its languages come first.
            names: Inputs that media are there for.

        Raises:
            ConfigError: The task needs a language that is not given, or does not know it.
        """
        probe = self.example_of("probe") if self.takes_text and example is None else example
        media = {} if self.takes_text else {name: {"type": name, "path": "probe"} for name in names}
        try:
            self.messages(media, probe)
        except DataError as exc:
            reason = str(exc).partition(": ")[2] or str(exc)
            for name, option in OPTIONS.items():
                reason = reason.replace(f"`{name}`", option)
            raise ConfigError(reason) from exc

    def messages(self, media: Mapping[str, Mapping[str, Any]], example: Example | None = None) -> list[Message]:
        """The conversation up to the answer.

        Args:
            media: Content items by input name.
            example: What a manifest says beside the media; its languages and its question come first.

        Raises:
            DataError: The task lacks something.
        """
        given = example or Example()
        update: dict[str, Any] = {
            "task": self.task.type,
            "task_config": self.task,
            "media": {name: dict(item) for name, item in media.items()},
            "source_language": given.source_language or self.source_language,
            "target_language": given.target_language or self.target_language,
            "instruction": given.instruction or self.question,
        }
        if media:  # the answer, and what is said, are not told
            update |= {"text": None, "transcript": None}
        return self.task.messages(given.model_copy(update=update), draw=0, with_answer=False)

    @property
    def _text_field(self) -> str | None:
        found = [name for name in ("source_text", "instruction") if name in self.task.needs]
        return found[0] if found else "source_text" if self.task.type == "ntp" else None
