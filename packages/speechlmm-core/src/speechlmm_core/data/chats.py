"""From an example to its chat: its own messages, or those that its task makes of its fields. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.example import Example
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.task import TaskConfig, get_task
from speechlmm_core.tasks.chat.config import ChatTaskConfig
from speechlmm_core.tasks.conversation.config import ConversationTaskConfig
from speechlmm_core.tasks.prompted.config import PromptedTaskConfig

task_of = lru_cache(maxsize=256)(get_task)
"""The task of a name; `get_task` without the look-up among the installed distributions."""


def task_for(example: Example) -> TaskConfig:
    """The task of an example, with the options that its dataset gives it."""
    return task_of(example.task) if example.task_config is None else example.task_config


def chat_of(
    example: Example, *, draw: int = 0, with_answer: bool = True, shots: Sequence[Example] = ()
) -> list[Message]:
    """The messages of an example.

    Args:
        example: The example; where it has messages, they are the chat, and its task says how it is scored, and by its
            options `system` and `supervise` how it begins and what is learnt.
        draw: Decides the wording of the task's prompt and all else that is left to chance; 0 takes the first.
        with_answer: Whether the answer is appended (training) or left to the model.
        shots: Further examples that are shown first.
    """
    task = _chat_task(task_for(example), example)
    return task.messages(example, draw=draw, with_answer=with_answer, shots=shots)


def question_of(example: Example) -> tuple[list[Message], str]:
    """The conversation up to the answer, and the answer that is expected.

    Raises:
        DataError: The example has no answer.
    """
    references = references_of(example)
    if not references:
        raise DataError(f"example {example.id!r} has no answer to compare with")
    return chat_of(example, with_answer=False), references[0]


def references_of(example: Example) -> tuple[str, ...]:
    """The answers that are right, the one that is trained on first; empty where there are none to compare with."""
    return _chat_task(task_for(example), example).references(example)


def split_answer(messages: Sequence[Message], name: str) -> tuple[list[Message], str]:
    """A conversation up to its answer, and the answer's text.

    Args:
        messages: The conversation.
        name: The example's, for messages.

    Raises:
        DataError: It does not end with an answer.
    """
    if not messages or messages[-1].role != "assistant":
        raise DataError(f"example {name!r} has no answer to compare with")
    answer = "".join(item["text"] for item in messages[-1].content if item["type"] == "text")
    return list(messages[:-1]), answer


def lack_of(example: Example, task: TaskConfig) -> str | None:
    """What an example lacks for its task, or None when it has everything."""
    return _chat_task(task, example).check(example)


def draws_of(example: Example) -> Sequence[int]:
    """Draws that lead to every wording that the example may get; empty where `longest_of` must be asked instead."""
    return _chat_task(task_for(example), example).draws(example)


def longest_of(example: Example) -> list[list[Message]]:
    """Chats that bound what the example may take of a model, but for the examples that are shown before it."""
    return _chat_task(task_for(example), example).longest(example)


def _chat_task(task: TaskConfig, example: Example) -> TaskConfig:
    """The task that makes the chat: one for conversations where the example has one."""
    if example.messages is None or isinstance(task, ConversationTaskConfig):
        return task
    if not isinstance(task, PromptedTaskConfig):
        return _conversation(None, "all")
    return _conversation(task.system, task.supervise)


@lru_cache(maxsize=256)
def _conversation(system: str | None, supervise: Literal["all", "last"]) -> ChatTaskConfig:
    return ChatTaskConfig(system=system, supervise=supervise)
