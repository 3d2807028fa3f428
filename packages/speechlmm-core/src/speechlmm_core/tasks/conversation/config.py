"""The base of tasks of whole conversations. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from speechlmm_core.chat.messages import Message
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.task import TaskConfig
from speechlmm_core.tasks.prompted.config import supervise_last

if TYPE_CHECKING:
    from speechlmm_core.data.example import Example


class ConversationTaskConfig(TaskConfig):
    """A task whose examples are conversations (`messages`), which it passes on."""

    system: str | None = None
    """A system message for conversations that begin with none."""
    supervise: Literal["all", "last"] = "all"
    """Which of the assistant's messages are learnt: all of them, or the last."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Example` without which it cannot be trained."""
        return ("messages",)

    def prompts(self, language: str = "en") -> list[str]:
        """None: the prompts are in the conversations."""
        return []

    def check(self, example: Example) -> str | None:
        """What an example lacks for this task, or None when it has everything."""
        if not example.messages:
            return f"task {self.type!r} needs `messages`, got none"
        if not any(message.role == "assistant" for message in example.messages):
            return f"task {self.type!r} needs an assistant's message to learn from, got none"
        if example.messages[-1].role != "assistant":
            return (
                f"task {self.type!r} needs a last message of the assistant's, got one of {example.messages[-1].role!r}"
            )
        return None

    def messages(
        self, example: Example, *, draw: int = 0, with_answer: bool = True, shots: Sequence[Example] = ()
    ) -> list[Message]:
        """The example's conversation.

        Args:
            example: The example.
            draw: Without meaning here.
            with_answer: Whether a last message of the assistant's is kept or left to the model.
            shots: Conversations that stand before it.

        Raises:
            DataError: The example has no messages.
        """
        if not example.messages:
            raise DataError(f"example {example.id!r}: task {self.type!r} needs `messages`, got none")
        found = [message for shot in shots for message in shot.messages or ()]
        found += example.messages
        if self.system is not None and found[0].role != "system":
            found.insert(0, Message.model_validate({"role": "system", "content": self.system}))
        if not with_answer and found[-1].role == "assistant":
            found.pop()
        return supervise_last(found) if self.supervise == "last" else found

    def references(self, example: Example) -> tuple[str, ...]:
        """The answers that are right: the text of the last message, where that is the assistant's."""
        if not example.messages or example.messages[-1].role != "assistant":
            return ()
        return ("".join(item["text"] for item in example.messages[-1].content if item["type"] == "text"),)
