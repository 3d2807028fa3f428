"""The interface of a task: how an example becomes a chat, and what its answers are scored with. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from speechlmm_core.registry import ComponentConfig, Registry

if TYPE_CHECKING:
    from speechlmm_core.chat.messages import Message
    from speechlmm_core.data.example import Example


class TaskConfig(ComponentConfig, ABC):
    """A task: its prompts, how its messages are built, and what it is scored with.

    The assistant's message may hold media beside text (`{"type": "audio", ...}`): a task with speech as its answer
    builds it so, and names what it puts out in `outputs`.
    """

    outputs: ClassVar[tuple[str, ...]] = ("text",)
    """What the answer is made of: `text`, or names of media."""
    transcribes: ClassVar[bool] = False
    """Whether the answer is what is spoken, whatever language a corpus translates it into."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score the task; the first one is its headline."""

    def rooted(self, base: Path) -> Self:
        """The same task, with relative paths among its options starting at ``base``: a specification's folder."""
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Example` without which it cannot be trained (`media`, `text`, `target_language`, `fields.intent`).

        ``a|b`` means either. Only for messages to the user before data are read; `check` decides.
        """
        return ()

    @property
    def num_shots(self) -> int:
        """How many further examples of the dataset are shown before the one that is asked about."""
        return 0

    @property
    def shots_seed(self) -> int:
        """Draws the few examples of the dataset of which some are shown before each."""
        return 0

    @property
    def slack(self) -> int:
        """Tokens by which another wording may be longer than the longest, where text of the corpus stands inside it.

        At the borders of that text, tokens merge or not.
        """
        return 0

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
    def messages(
        self, example: Example, *, draw: int = 0, with_answer: bool = True, shots: Sequence[Example] = ()
    ) -> list[Message]:
        """The chat for an example.

        Args:
            example: The example.
            draw: A number drawn from (seed, epoch, index): decides the prompt's language and wording; 0 takes the
                first of each. Independent numbers for several decisions come from `speechlmm_core.data.draw.derive`.
            with_answer: Whether the assistant's answer is appended (training) or left to the model.
            shots: `num_shots` examples that are shown first, as turns with their answers.
        """

    def draws(self, example: Example) -> Sequence[int]:
        """Draws that lead to every wording the example may get: the longest of their chats is planned for.

        Which is the longest must not depend on more than the example's task, its languages, and which of its fields
        are there. Empty where no few draws tell how long a chat may become; `longest` then does.
        """
        return range(max(1, len(self.prompts())))

    def longest(self, example: Example) -> list[list[Message]]:
        """Chats of which one takes at least as many positions, and one at least as many frames, as any it may become.

        The chats of all `draws`, unless a task knows better; shots come on top.
        """
        return [self.messages(example, draw=number) for number in self.draws(example)]

    def references(self, example: Example) -> tuple[str, ...]:
        """The answers that are right, the one that is trained on first; metrics compare with each of them."""
        return () if example.text is None else (example.text,)


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
