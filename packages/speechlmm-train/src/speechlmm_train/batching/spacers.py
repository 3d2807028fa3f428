"""Media for micro-batches that have none of an input: with several processes, every tower runs in each of them.

A process whose micro-batch is text alone would leave its encoder out, and the others would wait for its share of the
encoder's gradients, or add up gradients of different parameters. So the stage's shortest medium of that input comes
along, alone and without its transcript: nothing of it is learnt, and no loss counts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import as_examples
from speechlmm_core.data.longest import media_chats
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
        inputs: NDArray[np.uint32],
    ) -> Spacers:
        """The spacers of a stage, one for each input that its examples have, whose shortest stands in for it.

        What an input that never comes would reach is not trained, so it must be known of all examples; but only those
        that stand in are looked at.

        Args:
            processor: Makes samples.
            examples: The stage's dataset.
            indices: (N,) examples that take part.
            frames: (N,) encoder frames of each.
            inputs: (N,) the model's inputs that each has media of, as `Lengths` has them.
        """
        known = as_examples(examples)
        numbers: dict[str, int] = {}
        media: dict[str, dict[str, Any]] = {}
        for bit, name in enumerate(processor.inputs):
            having = np.flatnonzero(inputs >> np.uint32(bit) & np.uint32(1))
            if len(having):
                index = int(indices[having[np.argmin(frames[having])]])
                numbers[name], media[name] = index, next(_media(name, known.example(index)))
        missing = [name for name in processor.inputs if name not in numbers]
        for example in known.shown_first() if missing else ():
            for name in missing:
                for item in _media(name, example):
                    numbers[name] = -1
                    media.setdefault(name, item)
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


def _media(name: str, example: Example) -> Iterator[dict[str, Any]]:
    """An example's media of an input."""
    return (item for chat in media_chats(example) for message in chat for item in message.media if item["type"] == name)
