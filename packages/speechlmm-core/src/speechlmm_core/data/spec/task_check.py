"""What an example lacks for the task of its part, and of which kind it is. Imports no torch."""

from __future__ import annotations

import hashlib

from speechlmm_core.data.chats import lack_of
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import Examples
from speechlmm_core.data.index.open import made_by
from speechlmm_core.data.spec.language_codes import same_language
from speechlmm_core.data.spec.parts import Part
from speechlmm_core.data.spec.task_examples import TaskExamples

MOST_REASONS, MOST_KINDS = 255, 1 << 16
"""What a prepared index has numbers for."""
UNUSABLE = "unusable record"
"""Why a row is left out of which no example can be made."""
ANOTHER_LANGUAGE = "another language"
"""Why a row is left out that is not in the languages that are asked for."""
Kind = tuple[str, str | None, str | None, bool]
"""Examples of a kind get their prompts from the same place."""


class TaskCheck:
    """Checks the examples of a part one by one.

    Args:
        examples: All that was read of it.
        part: The part.
    """

    def __init__(self, examples: Examples, part: Part) -> None:
        self.task = part.spec.task
        self.source, self.target = part.selection.source_language, part.selection.target_language
        self.view = TaskExamples(examples, (), task=self.task, source_language=self.source, target_language=self.target)
        self.reasons: dict[str, int] = {}
        self.kinds: dict[Kind, int] = {}

    @property
    def needed(self) -> bool:
        """Whether there is anything to check."""
        return self.task is not None or self.source is not None

    @property
    def digest(self) -> str:
        """Of everything that decides what is found of an example."""
        task = None if self.task is None else (made_by(self.task), self.task.type, self.task.model_dump_json())
        text = repr((task, self.source, self.target))
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    def fitted(self, example: Example) -> Example:
        """An example as its task sees it."""
        return self.view.fitted(example)

    def look(self, example: Example) -> tuple[str | None, str | None]:
        """Why a fitted example is left out, and what it lacks where that is a fault; None where it is used."""
        pairs = ((self.source, example.source_language), (self.target, example.target_language))
        if any(wanted is not None and said is not None and not same_language(wanted, said) for wanted, said in pairs):
            return ANOTHER_LANGUAGE, None
        lack = None if self.task is None else lack_of(example, self.task)
        return (None, None) if lack is None else (_reason(lack), lack)

    def numbers(self, example: Example) -> tuple[int, int]:
        """The number of the reason why an example is left out (0: it is used), and that of its kind."""
        fitted = self.fitted(example)
        reason, _ = self.look(fitted)
        if reason is not None:
            return self.number(reason), 0
        return 0, min(self.kinds.setdefault(kind_of(fitted), len(self.kinds)), MOST_KINDS - 1)

    def number(self, reason: str) -> int:
        """The number of a reason."""
        return min(self.reasons.setdefault(reason, len(self.reasons) + 1), MOST_REASONS)

    @property
    def numbered(self) -> bool:
        """Whether there were numbers for everything."""
        return len(self.reasons) <= MOST_REASONS and len(self.kinds) <= MOST_KINDS


def kind_of(example: Example) -> Kind:
    """What decides where an example's prompts come from."""
    return (example.task, example.source_language, example.target_language, example.messages is None)


def _reason(lack: str) -> str:
    """What is lacking, without the value that this one example has."""
    return lack.partition(", got ")[0].partition("; got ")[0]
