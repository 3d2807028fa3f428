"""What each example takes of a model: positions, encoder frames, seconds. Read from file headers, once.

The batch plan is computed from these numbers, so they must not be too small. The `duration` of a manifest is rounded
and not used. A header is read once: its numbers are kept in the user's cache by the file's path, size and time, and,
for what is no audio, by the encoder's settings.
Imports no torch (an input that is no audio is loaded to be measured, which does).

Shapes: N examples.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.chats import chat_of, draws_of, longest_of, task_for
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ConcatExamples, Examples, ListExamples, place_of
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.header_cache import Header, HeaderCache, cache_folder
from speechlmm_core.data.index.sizes import Kind, Lengths, Sizer, StoredSizes, kind_of, tokenizer_text
from speechlmm_core.data.index.views import known_headers, shown_headers, unchecked, view_texts
from speechlmm_core.errors import DataError, MediaError, SpeechLMMError
from speechlmm_core.interfaces.encoder import EncoderConfig
from speechlmm_core.media.source import MediaSource, file_source, item_name

logger = logging.getLogger(__name__)

BLOCK = 4096
THREADS = 8
SIZES = 4
"""How sizes are counted; another number leaves those aside that are stored."""


def measure(
    examples: Sequence[Example],
    processor: Sizer,
    *,
    cache: Path | None = None,
    max_length: Callable[[str, int], int] | None = None,
) -> Lengths:
    """Measures every example.

    Args:
        examples: The examples.
        processor: The model's processor.
        cache: Folder where numbers are kept between runs; the user's cache folder by default.
        max_length: Of an input's name and a medium's samples, the most that augmentation may make of them; seconds
            are those of the media as they are.

    Raises:
        DataError: Media are unreadable or too short, or examples do not fit the model: all are counted, the first
            listed.
    """
    faults = Faults()
    measured: list[Lengths] = []
    for part in _parts(examples):
        stored = StoredSizes.of(part, processor, max_length, cache=cache or cache_folder())
        try:
            found = None if stored is None else stored.load()
            if found is None:
                with unchecked(part):
                    found = _Measurement(part, processor, cache or cache_folder(), max_length).run()
                if stored is not None:
                    stored.save(found)
            measured.append(found)
        except DataError as exc:
            faults.extend(exc)
    faults.raise_if_any()
    return Lengths(
        *(np.concatenate([getattr(one, name) for one in measured]) for name in ("positions", "frames", "seconds"))
    )


class _Measurement:
    """The measurement of one dataset."""

    def __init__(
        self,
        examples: Sequence[Example],
        processor: Sizer,
        folder: Path,
        max_length: Callable[[str, int], int] | None,
    ) -> None:
        self.examples, self.processor, self.max_length = examples, processor, max_length
        sources = examples.sources if isinstance(examples, Examples) else ()
        self.sources = [Path(path).absolute() for path in sources if Path(path).is_file()]
        self.folder = folder
        self.headers = HeaderCache.open(folder, "\0".join(map(str, self.sources)) or None)
        self.given: dict[MediaSource, Header] = {}
        self.faults = Faults()
        self.longest: dict[Kind, int] = {}

    def run(self) -> Lengths:
        count = len(self.examples)
        lengths = Lengths(np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count))
        num_samples = self.num_samples(lengths.seconds)
        self.headers.save()
        self.faults.raise_if_any()
        stored = self.stored_sizes(num_samples)
        if stored is not None and stored.is_file():
            try:
                sizes = np.load(stored, allow_pickle=False)
                if sizes.shape == (2, count) and sizes.dtype == np.int64:
                    return Lengths(sizes[0], sizes[1], lengths.seconds)
            except (OSError, ValueError, EOFError) as exc:
                logger.info("cannot read %s: %s", stored, exc)
        for index in range(count):
            try:
                lengths.positions[index], lengths.frames[index] = self.size(self.examples[index], num_samples[index])
            except DataError as exc:
                self.faults.add(place_of(self.examples, index), str(exc), order=index)
        self.faults.raise_if_any()
        self.add_shown_first(lengths)
        if stored is not None:
            HeaderCache.store(stored, np.stack([lengths.positions, lengths.frames]))
        return lengths

    def add_shown_first(self, lengths: Lengths) -> None:
        """Adds what the longest of the examples take that may be shown before each."""
        pool = self.examples.shown_first() if isinstance(self.examples, Examples) else []
        if not pool:
            return
        count = max(task_for(one).num_shots for one in pool)
        shown = _Measurement(ListExamples(pool), self.processor, self.folder, self.max_length)
        shown.given = shown_headers(self.examples)
        found = shown.run()
        lengths.positions[:] += np.sort(found.positions)[-count:].sum()
        lengths.frames[:] += np.sort(found.frames)[-count:].sum()

    def num_samples(self, seconds: NDArray[np.float64]) -> list[tuple[int, ...]]:
        """Samples of each example's media at their encoders' rates."""
        found: list[tuple[int, ...]] = []
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(self.examples), BLOCK):
                indices = range(start, min(start + BLOCK, len(self.examples)))
                chats = [self.media(index) for index in indices]
                known = {**self.given, **known_headers(self.examples, indices)}
                found_in = {file_source(item) for items, _ in chats for item in items if self.is_audio(item)}
                self.headers.read(sorted((one for one in found_in if one and one not in known), key=str), pool)
                self.headers.give(known)
                others = [(self.encoder(i), i) for items, _ in chats for i in items if not self.is_audio(i)]
                self.headers.count(others, pool)
                for index, (items, num_own) in zip(indices, chats, strict=True):
                    samples: list[int] = []
                    for at, item in enumerate(items):
                        try:
                            count = self.length(item)
                            seconds[index] += count / self.encoder(item).sampling_rate if at < num_own else 0.0
                            samples.append(self.augmented(item, count))
                        except SpeechLMMError as exc:
                            self.faults.add(place_of(self.examples, index), str(exc), order=index)
                    found.append(tuple(samples))
        return found

    def media(self, index: int) -> tuple[list[Mapping[str, Any]], int]:
        """The media of an example's chats that the model takes, and how many of them are the first chat's."""
        try:
            chats = media_chats(self.examples[index])
        except DataError as exc:
            self.faults.add(place_of(self.examples, index), str(exc), order=index)
            return [], 0
        items = [item for chat in chats for item in _media(chat)]
        known = ", ".join(self.processor.inputs) or "only text"
        for item in items:
            if item["type"] not in self.processor.inputs:
                text = f"the example holds {item['type']!r}, but this model takes {known}"
                self.faults.add(place_of(self.examples, index), text, order=index)
        return [item for item in items if item["type"] in self.processor.inputs], len(_media(chats[0]))

    def is_audio(self, item: Mapping[str, Any]) -> bool:
        return self.encoder(item).reads_audio_files

    def encoder(self, item: Mapping[str, Any]) -> EncoderConfig:
        return self.processor.inputs[item["type"]].encoder

    def length(self, item: Mapping[str, Any]) -> int:
        """Samples of a medium at its encoder's rate.

        Raises:
            MediaError: It cannot be used, gives no frame, or is longer than the encoder takes.
        """
        towers = self.processor.inputs[item["type"]]
        encoder = towers.encoder
        if self.is_audio(item):
            samples = self.headers.length(item, encoder.sampling_rate)
        else:
            samples = self.headers.num_samples(encoder, item)
        try:
            encoder.check_length(samples)
        except MediaError as exc:
            raise MediaError(f"{item_name(item)}: {exc}") from exc
        frames = towers.adapter.max_output_lengths(encoder.output_lengths(samples), encoder.frame_rate)
        if frames < 1:
            seconds = samples / encoder.sampling_rate
            raise MediaError(f"{item_name(item)}: {seconds:.3f} s are too short, the model makes no frame of them")
        return samples

    def augmented(self, item: Mapping[str, Any], num_samples: int) -> int:
        """The most samples that augmentation may make of a medium.

        Raises:
            MediaError: That is more than the encoder takes.
        """
        most = num_samples if self.max_length is None else self.max_length(item["type"], num_samples)
        if most > num_samples:
            try:
                self.encoder(item).check_length(most)
            except MediaError as exc:
                raise MediaError(f"{item_name(item)}: as long as augmentation may make it: {exc}") from exc
        return max(most, num_samples)

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
            end = start + len(_media(chat))
            sizes.append(self.processor.sizes(chat, num_samples[start:end]))
            start = end
        return max(positions for positions, _ in sizes), max(frames for _, frames in sizes)

    def stored_sizes(self, num_samples: list[tuple[int, ...]]) -> Path | None:
        """Where the sizes are kept: named after everything that they depend on."""
        if not self.sources:
            return None
        states = [(str(path), status.st_size, status.st_mtime_ns) for path in self.sources if (status := path.stat())]
        pool = self.examples.shown_first() if isinstance(self.examples, Examples) else []
        kinds = {kind_of(example): example for example in self.examples}
        digest = hashlib.blake2b(digest_size=16)
        for part in (
            f"{SIZES}\0{states}",
            *view_texts(self.examples),
            json.dumps(num_samples),
            self.processor.config.model_dump_json(),
            # Chats of each kind hold every wording and option that sizes depend on.
            *(repr([chat_of(one, draw=number) for number in draws_of(one)]) for one in [*kinds.values(), *pool]),
            *sorted(map(repr, kinds)),
            *(task_for(one).model_dump_json() for one in kinds.values()),
            tokenizer_text(self.processor.tokenizer),
        ):
            digest.update(part.encode() + b"\0")
        return self.folder / f"sizes-{digest.hexdigest()}.npy"


def _parts(examples: Sequence[Example]) -> list[Sequence[Example]]:
    """The datasets of a sequence, however they are put together."""
    if isinstance(examples, ConcatExamples):
        return [one for part in examples.parts for one in _parts(part)]
    return [examples]


def media_chats(example: Example) -> list[list[Message]]:
    """Chats that hold all media that an example may take."""
    return [chat_of(example)] if draws_of(example) else longest_of(example)


def _media(chat: Sequence[Message]) -> list[dict[str, Any]]:
    return [item for message in chat for item in message.media]
