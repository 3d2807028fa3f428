"""The messages with which a task asks about a medium. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from speechlmm_core.chat.messages import Message
from speechlmm_core.config import ModelConfig
from speechlmm_core.data.example import Example
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.interfaces.task import TaskConfig, get_task


def media_input(config: ModelConfig, modality: str) -> str:
    """Name of the model's input that takes files of a modality (`audio`, `video`).

    Raises:
        ConfigError: It has none.
    """
    names = [name for name, towers in config.inputs.items() if towers.encoder.modality == modality]
    if not names:
        raise ConfigError(f"this model takes no {modality}; its inputs are: {', '.join(config.inputs) or 'text only'}")
    return modality if modality in names else names[0]


@dataclass(frozen=True)
class TaskPrompt:
    """A task with its languages."""

    task: TaskConfig
    source_language: str | None = None
    target_language: str | None = None

    @classmethod
    def of(cls, name: str, source_language: str | None, target_language: str | None) -> TaskPrompt:
        """Looks a task up.

        Raises:
            ConfigError: There is no such task.
        """
        return cls(get_task(name), source_language, target_language)

    def check(self, example: Example | None = None) -> None:
        """Tries the task out.

        Args:
            example: What a manifest says; its languages come first.

        Raises:
            ConfigError: The task needs a language that is not given, or does not know it.
        """
        try:
            self.messages({"audio": {"type": "audio", "path": "probe"}}, example)
        except DataError as exc:
            reason = str(exc).partition(": ")[2] or str(exc)
            for name in ("source_language", "target_language"):
                reason = reason.replace(f"`{name}`", f"--{name.replace('_', '-')}")
            raise ConfigError(reason) from exc

    def messages(self, media: Mapping[str, Mapping[str, Any]], example: Example | None = None) -> list[Message]:
        """The conversation up to the answer.

        Args:
            media: Content items by input name.
            example: What a manifest says beside the media; its languages come first.

        Raises:
            DataError: The task lacks something.
        """
        own = Example(
            id=example.id if example else "",
            task=self.task.type,
            media={name: dict(item) for name, item in media.items()},
            source_language=(example.source_language if example else None) or self.source_language,
            target_language=(example.target_language if example else None) or self.target_language,
            messages=example.messages if example else None,
        )
        return self.task.messages(own, draw=0, with_answer=False)
