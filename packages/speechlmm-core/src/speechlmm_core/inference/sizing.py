"""What a conversation takes of a model, measured from the headers of its media, and batches of what is alike.

Sorting a window by length needs lengths only, so that no more media are in memory than two batches hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from speechlmm_core.chat.messages import Message
from speechlmm_core.errors import DataError
from speechlmm_core.processor.processor import SpeechLMMProcessor

AUTO_ROWS = {"cpu": 64, "cuda": 256}
"""Rows of an automatic batch at most, by device."""
AUTO_POSITIONS = {"cpu": 8192, "cuda": 65536}
"""Padded positions of an automatic batch."""
AUTO_FRAMES = {"cpu": 16384, "cuda": 262144}
"""Padded encoder frames of an automatic batch."""


class Size(NamedTuple):
    """What one conversation takes."""

    positions: int
    """Positions in the language model, up to the answer."""
    frames: int
    """Encoder frames of all media together."""


def measure(processor: SpeechLMMProcessor, messages: Sequence[Message]) -> Size:
    """The size of a conversation. Audio and video are measured by their headers; a plugin's media may be loaded for it.

    Raises:
        DataError: The messages do not fit the model.
        MediaError: A medium cannot be used.
    """
    items = [item for message in messages for item in message.media]
    for item in items:
        if item["type"] not in processor.inputs:
            known = ", ".join(processor.inputs) or "only text"
            raise DataError(f"a message holds {item['type']!r}, but this model takes {known}")
    return Size(
        *processor.sizes(
            messages, [processor.inputs[item["type"]].encoder.num_samples(item) for item in items], with_answer=False
        )
    )


def batches(
    sizes: Sequence[tuple[int, Size]], batch_size: int | Literal["auto"], *, device: str, alone_from: int | None
) -> Iterator[list[int]]:
    """Groups conversations of similar size.

    Args:
        sizes: Numbers of the conversations with their sizes.
        batch_size: Rows of a batch, or `auto` for as many as the device's budgets allow.
        device: Type of the device.
        alone_from: Positions from which on a conversation gets a batch of its own: its answer must be cut at the
            model's last position, which must not cut the others'.

    Yields:
        Their numbers, longest first: if memory does not suffice, that shows at once.
    """
    rows = AUTO_ROWS.get(device, 32) if batch_size == "auto" else batch_size
    batch: list[int] = []
    most = Size(0, 0)
    for number, size in sorted(sizes, key=lambda pair: (-pair[1].positions, pair[0])):
        if alone_from is not None and size.positions > alone_from:
            yield [number]
            continue
        most = Size(max(most.positions, size.positions), max(most.frames, size.frames))
        count = len(batch) + 1
        full = count > rows or (
            batch_size == "auto"
            and (
                count * most.positions > AUTO_POSITIONS.get(device, 4096)
                or count * most.frames > AUTO_FRAMES.get(device, 16384)
            )
        )
        if batch and full:
            yield batch
            batch, most = [], size
        batch.append(number)
    if batch:
        yield batch
