"""From an example to its chat: its own messages, or those that its task makes of its fields. Imports no torch."""

from __future__ import annotations

from functools import lru_cache

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.example import Example
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.task import TaskConfig, get_task
from speechlmm_core.tasks.chat.config import ChatTaskConfig

task_of = lru_cache(maxsize=256)(get_task)
"""The task of a name; `get_task` without the look-up among the installed distributions."""
_conversation = ChatTaskConfig()


def chat_of(example: Example, *, draw: int = 0, with_answer: bool = True) -> list[Message]:
    """The messages of an example.

    Args:
        example: The example; where it has messages, they are the chat, and its task only says how it is scored.
        draw: Picks the wording of the task's prompt.
        with_answer: Whether the answer is appended (training) or left to the model.
    """
    return _chat_task(task_of(example.task), example).messages(example, draw=draw, with_answer=with_answer)


def question_of(example: Example) -> tuple[list[Message], str]:
    """The conversation up to the answer, and the answer that is expected.

    Raises:
        DataError: The example has no answer.
    """
    messages = chat_of(example)
    if not messages or messages[-1].role != "assistant":
        raise DataError(f"example {example.id!r} has no answer to compare with")
    answer = "".join(item["text"] for item in messages[-1].content if item["type"] == "text")
    return messages[:-1], answer


def lack_of(example: Example, task: TaskConfig) -> str | None:
    """What an example lacks for its task, or None when it has everything."""
    return _chat_task(task, example).check(example)


def wordings(task: TaskConfig) -> int:
    """How many wordings a task's prompt has."""
    return max(1, len(task.prompts()))


def _chat_task(task: TaskConfig, example: Example) -> TaskConfig:
    return task if example.messages is None else _conversation
