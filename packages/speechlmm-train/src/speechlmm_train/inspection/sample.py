"""One example, made into what the model gets: tokens, media, features, and the prompts of the next epochs.

Shapes: L samples of sound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from speechlmm_core.chat.messages import Message
from speechlmm_core.chat.tokenizer import MediaPiece
from speechlmm_core.data.draw import draw
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.errors import SpeechLMMError
from speechlmm_core.media.medium import Medium
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.augment.augmenter import Augmenter
from speechlmm_train.inspection.tokens import Span, spans_of


@dataclass(frozen=True)
class SeenMedium:
    """A medium of a sample."""

    name: str
    """The model's input."""
    item: dict[str, Any]
    medium: Medium
    """As the encoder's preprocessor gets it."""
    features: dict[str, Any]
    """What the preprocessor makes of it alone."""
    encoder_frames: int
    positions: int
    """Positions that it takes in the language model."""


@dataclass(frozen=True)
class SeenSample:
    """An example as the model sees it, or why it does not."""

    place: str
    index: int
    id: str = ""
    task: str = ""
    languages: str = ""
    spans: list[Span] = field(default_factory=list[Span])
    media: list[SeenMedium] = field(default_factory=list[SeenMedium])
    prompts: list[str] = field(default_factory=list[str])
    """What the user says, epoch by epoch; one for evaluation, where nothing is drawn."""
    error: str | None = None

    @property
    def num_tokens(self) -> int:
        """Positions in the language model."""
        return sum(span.num_tokens for span in self.spans)

    @property
    def num_supervised(self) -> int:
        """Tokens that are learnt."""
        return sum(span.num_tokens for span in self.spans if span.supervised)

    @property
    def duration_s(self) -> float:
        """Seconds of media."""
        return sum(one.medium.duration_s for one in self.media)


@dataclass(frozen=True)
class View:
    """How examples are looked at."""

    processor: SpeechLMMProcessor
    seed: int
    """Seed of the loader; the number of an example in all training sets decides the rest."""
    epochs: int = 3
    augmenter: Augmenter | None = None

    def sample(self, dataset: OpenedDataset, index: int, offset: int) -> SeenSample:
        """Makes a sample; never fails for what is wrong with the data.

        Args:
            dataset: The dataset.
            index: The example's number in it.
            offset: Training examples before the dataset.
        """
        place = dataset.examples.place(index)
        try:
            return self._sample(dataset, index, offset, place)
        except SpeechLMMError as exc:
            return SeenSample(place, index, error="; ".join(str(exc).splitlines()))

    def _sample(self, dataset: OpenedDataset, index: int, offset: int, place: str) -> SeenSample:
        example = dataset.examples.example(index)
        trains = dataset.destination == "train"
        numbers = [draw(self.seed, epoch, offset + index) for epoch in range(self.epochs)] if trains else [0]
        chats = [dataset.examples.chat(index, draw=number) for number in numbers]
        chat = chats[0]
        answered = bool(chat) and chat[-1].role in ("assistant", "text")
        transform = None
        if self.augmenter is not None and trains:
            transform = self.augmenter(draw(self.seed, 0, offset + index, "augmentation"))
        sample = self.processor.sample(chat, with_answer=answered, transform=transform)
        pieces = self.processor.tokenizer.encode_chat(chat, add_generation_prompt=not answered)
        items = [piece.item for piece in pieces if isinstance(piece, MediaPiece)]
        media: list[SeenMedium] = []
        for item, (name, medium), positions in zip(items, sample.media, sample.layout.num_frames, strict=True):
            encoder = self.processor.inputs[name].encoder
            features = encoder.build_preprocessor()([medium])
            frames = int(encoder.output_lengths(medium.num_samples))
            media.append(SeenMedium(name, item, medium, features, frames, positions))
        languages = [one for one in (example.source_language, example.target_language) if one]
        return SeenSample(
            place,
            index,
            example.id,
            example.task,
            "-".join(dict.fromkeys(languages)),
            spans_of(pieces, sample.layout.num_frames, self.processor.tokenizer),
            media,
            [prompt_of(one) for one in chats],
        )


def prompt_of(chat: list[Message]) -> str:
    """What is said in the chat before the last answer, media by their names."""
    said = chat[:-1] if chat and chat[-1].role == "assistant" else chat
    lines: list[str] = []
    for message in said:
        parts = [str(item["text"]) if item["type"] == "text" else f"<{item['type']}>" for item in message.content]
        lines.append(("" if len(said) == 1 else f"{message.role}: ") + "".join(parts))
    return "\n".join(lines)
