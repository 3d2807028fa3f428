"""Media for micro-batches that have none of an input: with several processes, every tower runs in each of them.

A process whose micro-batch is text alone would leave its encoder out, and the others would wait for its share of the
encoder's gradients, or add up gradients of different parameters. So the stage's shortest medium of that input comes
along, alone and without its transcript: nothing of it is learnt, and no loss counts it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import as_examples
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.processor.sample import ProcessedSample

SEARCHED = 10_000
"""Examples that are looked through for one with an input."""


class Spacers:
    """What fills up micro-batches.

    Args:
        processor: Makes samples.
        examples: The examples.
        numbers: By input, the example that stands in where it is missing.
    """

    def __init__(self, processor: SpeechLMMProcessor, examples: Sequence[Example], numbers: dict[str, int]) -> None:
        self.processor, self.examples, self.numbers = processor, as_examples(examples), numbers
        self._made: dict[str, ProcessedSample] = {}

    @classmethod
    def of(
        cls,
        processor: SpeechLMMProcessor,
        examples: Sequence[Example],
        indices: NDArray[np.int64],
        frames: NDArray[np.int64],
    ) -> Spacers:
        """The spacers of a stage, one for each input that its examples have.

        Args:
            processor: Makes samples.
            examples: The stage's dataset.
            indices: (N,) examples that take part.
            frames: (N,) encoder frames of each.
        """
        known = as_examples(examples)
        missing = set(processor.inputs)
        found: dict[str, int] = {}
        with_media = np.flatnonzero(frames)
        for place in with_media[np.argsort(frames[with_media], kind="stable")][:SEARCHED].tolist():
            index = int(indices[place])
            for message in known.chat(index):
                for item in message.media:
                    if item["type"] in missing:
                        missing.discard(item["type"])
                        found[item["type"]] = index
            if not missing:
                break
        return cls(processor, examples, found)

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
            chat = self.examples.chat(self.numbers[name])
            item = next(item for message in chat for item in message.media if item["type"] == name)
            asked = Message(role="user", content=[{k: v for k, v in item.items() if k != "transcript"}])
            self._made[name] = self.processor.sample([asked], with_answer=False)
        return self._made[name]
