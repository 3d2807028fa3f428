"""Random-access sequences of examples, and views of them: parts of one, and several in a row. Imports no torch."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from speechlmm_core.data.chats import chat_of
from speechlmm_core.data.example import Example

if TYPE_CHECKING:
    from speechlmm_core.chat.messages import Message


class Examples(Sequence[Example]):
    """What a dataset reader returns: examples by number, made when they are asked for; picklable, safe in forks."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def example(self, index: int) -> Example:
        """The example of a number from 0 to ``len - 1``.

        Raises:
            DataError: Its record cannot be used.
        """

    def place(self, index: int) -> str:
        """Where an example stands, as messages name it (``train.jsonl:12``)."""
        return f"example {index}"

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files that say which examples there are (manifests, tables), but not their media.

        A prepared index compares them whenever it is opened; where there are none, it looks for tables itself.
        """
        path = getattr(self, "path", None)
        return (path,) if isinstance(path, Path) else ()

    def chat(self, index: int, *, draw: int = 0, with_answer: bool = True) -> list[Message]:
        """The chat of an example, with the further examples that its task shows first.

        Args:
            index: Its number.
            draw: Drawn from (seed, epoch, index): decides the wording and all else that is left to chance; 0 takes
                the first of everything, as evaluation and inference do.
            with_answer: Whether the answer is appended (training) or left to the model.
        """
        return chat_of(self.example(index), draw=draw, with_answer=with_answer)

    def shown_first(self) -> list[Example]:
        """Examples of which any `num_shots` of the task may be shown before another."""
        return []

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self.example(i) for i in range(*index.indices(len(self)))]
        return self.example(range(len(self))[index])


class ListExamples(Examples):
    """Examples that are in memory already."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = list(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def example(self, index: int) -> Example:
        """The example of a number."""
        return self.examples[index]


class SubsetExamples(Examples):
    """Some examples of a dataset, in any order."""

    def __init__(self, whole: Examples, indices: Sequence[int]) -> None:
        self.whole = whole
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def example(self, index: int) -> Example:
        """The example of a number."""
        return self.whole.example(int(self.indices[index]))

    def place(self, index: int) -> str:
        """Where an example stands, as messages name it."""
        return self.whole.place(int(self.indices[index]))

    def chat(self, index: int, *, draw: int = 0, with_answer: bool = True) -> list[Message]:
        """The chat of an example."""
        return self.whole.chat(int(self.indices[index]), draw=draw, with_answer=with_answer)

    def shown_first(self) -> list[Example]:
        """Examples that may be shown before another."""
        return self.whole.shown_first()

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files that say which examples there are."""
        return self.whole.sources


class ConcatExamples(Examples):
    """Several datasets, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Example]]) -> None:
        self.parts: list[Examples] = [as_examples(part) for part in parts]
        self._ends: list[int] = []
        for part in self.parts:
            self._ends.append(len(part) + (self._ends[-1] if self._ends else 0))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def example(self, index: int) -> Example:
        """The example of a number."""
        part, at = self.find(index)
        return part.example(at)

    def place(self, index: int) -> str:
        """Where an example stands, as messages name it."""
        part, at = self.find(index)
        return part.place(at)

    def chat(self, index: int, *, draw: int = 0, with_answer: bool = True) -> list[Message]:
        """The chat of an example."""
        part, at = self.find(index)
        return part.chat(at, draw=draw, with_answer=with_answer)

    def shown_first(self) -> list[Example]:
        """Examples of which some may be shown before another, of any of the datasets."""
        return [example for part in self.parts for example in part.shown_first()]

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files that say which examples there are."""
        return tuple(dict.fromkeys(path for part in self.parts for path in part.sources))

    def find(self, index: int) -> tuple[Examples, int]:
        """The dataset that an example belongs to, and its number there."""
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)


def as_examples(examples: Sequence[Example]) -> Examples:
    """A plain sequence as `Examples`."""
    return examples if isinstance(examples, Examples) else ListExamples(examples)


def place_of(examples: Sequence[Example], index: int) -> str:
    """Where an example stands: file and line if its dataset knows them, else its number."""
    place = getattr(examples, "place", None)
    return str(place(index)) if callable(place) else f"example {index}"
