"""Media for micro-batches that have none of an input: with several processes, every tower runs in each of them.

A process whose micro-batch is text alone would leave its encoder out, and the others would wait for its share of the
encoder's gradients, or add up gradients of different parameters. So the stage's shortest medium of that input comes
along, alone and without its transcript: nothing of it is learnt, and no loss counts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import as_examples
from speechlmm_core.data.lengths import media_chats
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.processor.sample import ProcessedSample


class Spacers:
    """What fills up micro-batches.

    Args:
        processor: Makes samples.
        numbers: By input, the example whose medium stands in where it is missing; -1 for one that is shown first.
        media: By input, that medium.
    """

    def __init__(
        self, processor: SpeechLMMProcessor, numbers: dict[str, int], media: dict[str, dict[str, Any]]
    ) -> None:
        self.processor, self.numbers, self.media = processor, numbers, media
        self._made: dict[str, ProcessedSample] = {}

    @classmethod
    def of(
        cls,
        processor: SpeechLMMProcessor,
        examples: Sequence[Example],
        indices: NDArray[np.int64],
        frames: NDArray[np.int64],
        members: NDArray[np.int64] | None = None,
    ) -> Spacers:
        """The spacers of a stage, one for each input that its examples have.

        Examples are looked through until all inputs of the model are found: all of them, where an input never comes,
        for what that input would reach is not trained. The shortest of each group come first, as the examples of a
        group mostly have the same inputs.

        Args:
            processor: Makes samples.
            examples: The stage's dataset.
            indices: (N,) examples that take part.
            frames: (N,) encoder frames of each.
            members: (N,) the group of each; by default they are one.
        """
        known = as_examples(examples)
        numbers: dict[str, int] = {}
        media: dict[str, dict[str, Any]] = {}

        def take(index: int, chats: Iterable[Sequence[Message]]) -> bool:
            for item in (item for chat in chats for message in chat for item in message.media):
                if item["type"] in processor.inputs and item["type"] not in media:
                    numbers[item["type"]], media[item["type"]] = index, item
            return len(media) == len(processor.inputs)

        for place in _shortest_first(frames, members):
            index = int(indices[place])
            if take(index, media_chats(known.example(index))):
                return cls(processor, numbers, media)
        for example in known.shown_first():
            take(-1, media_chats(example))
        return cls(processor, numbers, media)

    def fill(self, samples: list[ProcessedSample]) -> list[ProcessedSample]:
        """The samples, and one more for each input that none of them has."""
        present = {name for sample in samples for name, _ in sample.media}
        added: list[ProcessedSample] = []
        for name in self.numbers:
            if name not in present:
                added.append(self._spacer(name))
        return [*samples, *added]

    def _spacer(self, name: str) -> ProcessedSample:
        if name not in self._made:
            item = {key: value for key, value in self.media[name].items() if key != "transcript"}
            self._made[name] = self.processor.sample([Message(role="user", content=[item])], with_answer=False)
        return self._made[name]


def _shortest_first(frames: NDArray[np.int64], members: NDArray[np.int64] | None) -> list[int]:
    """Examples with media: the shortest of every group, the second of every group, and so on."""
    with_media = np.flatnonzero(frames)
    order = with_media[np.argsort(frames[with_media], kind="stable")]
    own = np.zeros(len(order), np.int64) if members is None else members[order]
    by_group = np.argsort(own, kind="stable")
    first = np.searchsorted(own[by_group], own[by_group])
    turn = np.empty(len(order), np.int64)
    turn[by_group] = np.arange(len(order)) - first
    return order[np.argsort(turn, kind="stable")].tolist()
