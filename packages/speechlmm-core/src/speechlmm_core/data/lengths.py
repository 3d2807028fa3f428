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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from speechlmm_core.data.chats import chat_of, draws_of, task_for
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ConcatExamples, Examples, ListExamples, place_of
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.header_cache import Header, HeaderCache, cache_folder
from speechlmm_core.data.index.sizes import Kind, Lengths, Sizer, StoredSizes, kind_of, tokenizer_text
from speechlmm_core.data.index.views import known_headers, shown_headers, unchecked, view_texts
from speechlmm_core.data.longest import LongestWordings, media_chats, media_in
from speechlmm_core.errors import DataError, MediaError, SpeechLMMError
from speechlmm_core.interfaces.encoder import EncoderConfig
from speechlmm_core.media.source import MediaSource, file_source, item_name

logger = logging.getLogger(__name__)

BLOCK = 4096
THREADS = 8
SIZES = 5
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
                found = measure_anew(part, processor, cache=cache or cache_folder(), max_length=max_length)
                if stored is not None:
                    stored.save(found)
            measured.append(found)
        except DataError as exc:
            faults.extend(exc)
    faults.raise_if_any()
    return Lengths.joined(measured)


def measure_anew(
    examples: Sequence[Example], processor: Sizer, *, cache: Path, max_length: Callable[[str, int], int] | None = None
) -> Lengths:
    """Measures every example of one dataset, whatever is stored of a prepared part; as `measure`.

    Raises:
        DataError: As `measure` does.
    """
    with unchecked(examples):
        return _Measurement(examples, processor, cache, max_length).run()


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
        self.counted = LongestWordings(processor)
        self.kinds: dict[Kind, int] = {}
        self.bits = {name: 1 << number for number, name in enumerate(processor.inputs)}
        count = len(examples)
        self.lengths = Lengths(
            np.zeros(count, np.int64),
            np.zeros(count, np.int64),
            np.zeros(count),
            np.zeros(count, np.uint32),
            self.kinds,
        )

    def run(self) -> Lengths:
        # Sizes that may be stored are looked for once all media are measured; others are counted in the same pass.
        num_samples = self.measure_media(at_once=not self.sources)
        self.headers.save()
        self.faults.raise_if_any()
        lengths = self.lengths
        stored = self.stored_sizes(num_samples)
        if stored is not None and stored.is_file():
            try:
                sizes = np.load(stored, allow_pickle=False)
                if sizes.shape == (2, len(lengths)) and sizes.dtype == np.int64:
                    return replace(lengths, positions=sizes[0], frames=sizes[1])
            except (OSError, ValueError, EOFError) as exc:
                logger.info("cannot read %s: %s", stored, exc)
        if self.sources:
            for index, samples in enumerate(num_samples):
                self.add_size(index, self.examples[index], samples)
            self.faults.raise_if_any()
        self.add_shown_first(lengths)
        if stored is not None:
            HeaderCache.store(stored, np.stack([lengths.positions, lengths.frames]))
        return lengths

    def add_size(self, index: int, example: Example, num_samples: tuple[int, ...]) -> None:
        try:
            self.lengths.positions[index], self.lengths.frames[index] = self.counted.size(example, num_samples)
        except DataError as exc:
            self.faults.add(place_of(self.examples, index), str(exc), order=index)

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

    def measure_media(self, *, at_once: bool) -> list[tuple[int, ...]]:
        """Samples of each example's media at their encoders' rates; with ``at_once``, sizes are counted, too."""
        found: list[tuple[int, ...]] = []
        sound = True
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(self.examples), BLOCK):
                indices = range(start, min(start + BLOCK, len(self.examples)))
                before = self.faults.count
                examples = [self.example(index) for index in indices]
                chats = [self.media(index, example) for index, example in zip(indices, examples, strict=True)]
                known = {**self.given, **known_headers(self.examples, indices, examples)}
                found_in = {file_source(item) for items, _ in chats for item in items if self.is_audio(item)}
                self.headers.read(sorted((one for one in found_in if one and one not in known), key=str), pool)
                self.headers.give(known)
                others = [(self.encoder(i), i) for items, _ in chats for i in items if not self.is_audio(i)]
                self.headers.count(others, pool)
                measured = [self.samples(index, *one) for index, one in zip(indices, chats, strict=True)]
                sound = sound and self.faults.count == before
                for index, example, samples in zip(indices, examples, measured, strict=True):
                    if at_once and sound and example is not None:
                        self.add_size(index, example, samples)
                found += measured
        return found

    def samples(self, index: int, items: Sequence[Mapping[str, Any]], num_own: int) -> tuple[int, ...]:
        """Samples of an example's media, whose seconds and inputs are noted."""
        samples: list[int] = []
        for at, item in enumerate(items):
            try:
                count = self.length(item)
                self.lengths.seconds[index] += count / self.encoder(item).sampling_rate if at < num_own else 0.0
                self.lengths.inputs[index] |= self.bits[item["type"]]
                samples.append(self.augmented(item, count))
            except SpeechLMMError as exc:
                self.faults.add(place_of(self.examples, index), str(exc), order=index)
        return tuple(samples)

    def example(self, index: int) -> Example | None:
        """An example, whose kind is noted; None where its record cannot be used."""
        try:
            example = self.examples[index]
            kind = kind_of(example)
        except DataError as exc:
            self.faults.add(place_of(self.examples, index), str(exc), order=index)
            return None
        self.kinds.setdefault(kind, index)
        return example

    def media(self, index: int, example: Example | None) -> tuple[list[Mapping[str, Any]], int]:
        """The media of an example's chats that the model takes, and how many of them are the first chat's."""
        if example is None:
            return [], 0
        try:
            chats = media_chats(example)
        except DataError as exc:
            self.faults.add(place_of(self.examples, index), str(exc), order=index)
            return [], 0
        items = [item for chat in chats for item in media_in(chat)]
        known = ", ".join(self.processor.inputs) or "only text"
        for item in items:
            if item["type"] not in self.processor.inputs:
                text = f"the example holds {item['type']!r}, but this model takes {known}"
                self.faults.add(place_of(self.examples, index), text, order=index)
        return [item for item in items if item["type"] in self.processor.inputs], len(media_in(chats[0]))

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

    def stored_sizes(self, num_samples: list[tuple[int, ...]]) -> Path | None:
        """Where the sizes are kept: named after everything that they depend on."""
        if not self.sources:
            return None
        states = [(str(path), status.st_size, status.st_mtime_ns) for path in self.sources if (status := path.stat())]
        pool = self.examples.shown_first() if isinstance(self.examples, Examples) else []
        kinds = {kind: self.examples[index] for kind, index in self.kinds.items()}
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
