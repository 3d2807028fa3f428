"""What an example takes of a model at most, whichever wordings and media are drawn for it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.chats import chat_of, draws_of, longest_of, task_for
from speechlmm_core.data.example import Example
from speechlmm_core.data.index.sizes import Kind, Sizer, kind_of


class LongestWordings:
    """Counts positions and frames of examples with their longest wordings, which are looked for once a kind.

    Args:
        processor: The model's processor.
    """

    def __init__(self, processor: Sizer) -> None:
        self.processor = processor
        self.longest: dict[Kind, int] = {}

    def size(self, example: Example, num_samples: tuple[int, ...]) -> tuple[int, int]:
        """Positions and frames with the longest wording of the example's prompt."""
        numbers = draws_of(example)
        if not numbers:
            return self.size_of_longest(example, num_samples)
        kind = kind_of(example)
        if kind not in self.longest:
            sizes = [self.processor.sizes(chat_of(example, draw=number), num_samples)[0] for number in numbers]
            self.longest[kind] = numbers[int(np.argmax(sizes))]
        positions, frames = self.processor.sizes(chat_of(example, draw=self.longest[kind]), num_samples)
        return positions + (task_for(example).slack if len(numbers) > 1 else 0), frames

    def size_of_longest(self, example: Example, num_samples: tuple[int, ...]) -> tuple[int, int]:
        """Positions and frames of an example whose media differ from draw to draw, by the chats that bound it."""
        sizes: list[tuple[int, int]] = []
        start = 0
        for chat in longest_of(example):
            end = start + len(media_in(chat))
            sizes.append(self.processor.sizes(chat, num_samples[start:end]))
            start = end
        return max(positions for positions, _ in sizes), max(frames for _, frames in sizes)


def media_chats(example: Example) -> list[list[Message]]:
    """Chats that hold all media that an example may take."""
    return [chat_of(example)] if draws_of(example) else longest_of(example)


def media_in(chat: Sequence[Message]) -> list[dict[str, Any]]:
    """The media of a chat, in order."""
    return [item for message in chat for item in message.media]
