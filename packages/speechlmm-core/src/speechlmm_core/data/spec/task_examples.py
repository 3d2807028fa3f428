"""Examples as a specification's task sees them: with its options, its languages, and its few-shot examples.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.chats import chat_of
from speechlmm_core.data.draw import derive, permutation
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import Examples
from speechlmm_core.interfaces.task import TaskConfig

if TYPE_CHECKING:
    from speechlmm_core.chat.messages import Message

SHOT_POOL = 16
"""Examples of a dataset among which few-shot examples are drawn, beside those that are shown at once."""


class TaskExamples(Examples):
    """Some examples of a dataset, for a task.

    Args:
        whole: All that was read.
        indices: Those that take part, in order.
        task: Their task with its options; None where each of them names its own.
        source_language: Language that is spoken where an example does not say.
        target_language: Language of the answer, likewise.
    """

    def __init__(
        self,
        whole: Examples,
        indices: Sequence[int] | NDArray[np.int64],
        *,
        task: TaskConfig | None = None,
        source_language: str | None = None,
        target_language: str | None = None,
    ) -> None:
        self.whole = whole
        self.indices = indices
        self.task = task
        self.source_language = source_language
        self.target_language = target_language
        # A recogniser of a corpus of translations answers in the language that is spoken.
        spoken = task is not None and task.transcribes
        self.told = tuple(
            name
            for name in ("source_language", "target_language")
            if getattr(self, name) is not None and not (spoken and name == "target_language")
        )
        self.pool = self._pool()

    def __len__(self) -> int:
        return len(self.indices)

    def example(self, index: int) -> Example:
        """The example of a number."""
        return self.fitted(self.whole.example(int(self.indices[index])))

    def fitted(self, example: Example) -> Example:
        """An example with what the specification says about all of them."""
        update: dict[str, Any] = {}
        if self.task is not None:
            update = {"task": self.task.type, "task_config": self.task}
        for name in self.told:
            if getattr(example, name) is None:
                update[name] = getattr(self, name)
        return example.model_copy(update=update) if update else example

    def place(self, index: int) -> str:
        """Where an example stands, as messages name it."""
        return self.whole.place(int(self.indices[index]))

    def chat(self, index: int, *, draw: int = 0, with_answer: bool = True) -> list[Message]:
        """The chat of an example, with the further examples that its task shows first."""
        shots = [self.example(at) for at in self.shots(index, draw)]
        return chat_of(self.example(index), draw=draw, with_answer=with_answer, shots=shots)

    def shown_first(self) -> list[Example]:
        """Examples of which any `num_shots` of the task may be shown before another."""
        return [self.example(at) for at in self.pool]

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files that say which examples there are."""
        return self.whole.sources

    def shots(self, index: int, draw: int = 0) -> list[int]:
        """Numbers of the examples that are shown before one: a run of the pool without the example itself."""
        others = [at for at in self.pool if at != index]
        count = min(self.num_shots, len(others))
        start = derive(draw, "shots") % len(others) if count else 0
        return [others[(start + at) % len(others)] for at in range(count)]

    @property
    def num_shots(self) -> int:
        """How many further examples are shown before each."""
        return 0 if self.task is None else self.task.num_shots

    def _pool(self) -> list[int]:
        if not self.num_shots or not len(self.indices):
            return []
        seed = int(self.task.shots_seed or 0 if self.task else 0)
        order = permutation(seed, 0, len(self.indices), "few_shots")
        return [int(at) for at in order[: SHOT_POOL + self.num_shots]]
