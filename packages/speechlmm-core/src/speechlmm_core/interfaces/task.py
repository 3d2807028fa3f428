"""The interface of a task: how an example becomes a chat. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from speechlmm_core.registry import ComponentConfig, Registry

if TYPE_CHECKING:
    from speechlmm_core.chat.messages import Message
    from speechlmm_core.data.example import Example


class TaskConfig(ComponentConfig, ABC):
    """A task: its prompts, how its messages are built, and what it is scored with."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task."""

    @abstractmethod
    def prompts(self, language: str = "en") -> list[str]:
        """The wordings of the task's prompt in a language.

        Raises:
            ConfigError: No prompts in that language.
        """

    @abstractmethod
    def check(self, example: Example) -> str | None:
        """What an example lacks for this task, or None when it has everything."""

    @abstractmethod
    def messages(self, example: Example, *, draw: int = 0, with_answer: bool = True) -> list[Message]:
        """The chat for an example.

        Args:
            example: The example.
            draw: A number drawn from (seed, epoch, index); picks the wording, 0 being the first.
            with_answer: Whether the assistant's answer is appended (training) or left to the model.
        """


tasks: Registry[TaskConfig] = Registry("task", TaskConfig)
AnyTask = Annotated[TaskConfig, tasks]


def get_task(name: str, options: Mapping[str, Any] | None = None) -> TaskConfig:
    """The task called ``name``.

    Raises:
        ConfigError: No installed distribution provides it, or the options do not fit.
    """
    from pydantic import ValidationError
    from pydantic_core import PydanticCustomError

    from speechlmm_core.errors import ConfigError

    try:
        return tasks.validate({"type": name, **(options or {})})
    except (PydanticCustomError, ValidationError) as exc:
        raise ConfigError(str(exc)) from exc
