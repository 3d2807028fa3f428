"""From an example to its chat, by its task. Imports no torch."""

from __future__ import annotations

from functools import lru_cache

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.example import Example
from speechlmm_core.interfaces.task import TaskConfig, get_task

task_of = lru_cache(maxsize=256)(get_task)
"""The task of a name; `get_task` without the look-up among the installed distributions."""


def chat_of(example: Example, *, draw: int = 0, with_answer: bool = True) -> list[Message]:
    """The messages of an example.

    Args:
        example: The example.
        draw: Picks the wording of the task's prompt.
        with_answer: Whether the answer is appended (training) or left to the model.
    """
    return task_of(example.task).messages(example, draw=draw, with_answer=with_answer)


def wordings(task: TaskConfig) -> int:
    """How many wordings a task's prompt has."""
    return max(1, len(task.prompts()))
