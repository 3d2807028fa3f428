"""The processor: chat messages with media in, the tensors of a batch out. It runs in data workers, on the CPU.

Shapes: B media, R rows, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from speechlmm_core.chat.messages import Message
from speechlmm_core.chat.tokenizer import ChatTokenizer, MediaPiece
from speechlmm_core.config import InputConfig, ModelConfig
from speechlmm_core.errors import DataError, MediaError
from speechlmm_core.interfaces.objective import ObjectiveConfig
from speechlmm_core.media.medium import Medium
from speechlmm_core.media.source import item_name
from speechlmm_core.processor.per_sample import items_by_sample, media_samples
from speechlmm_core.processor.sample import ProcessedSample
from speechlmm_core.processor.targets import pad_targets, planned_frames
from speechlmm_core.splice.plan import build_layout, plan_batch

MessageLike = Message | Mapping[str, Any]
Transform = Callable[[str, Medium], Medium]
"""Of an input's name and its medium, another medium for it."""


class SpeechLMMProcessor:
    """Tokenises conversations, loads and preprocesses their media, and lays out batches.

    Args:
        config: The model's configuration.
        tokenizer: The text decoder's tokenizer with its chat template.
    """

    def __init__(self, config: ModelConfig, tokenizer: ChatTokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.inputs: dict[str, InputConfig] = config.inputs
        self._preprocessors = {name: towers.encoder.build_preprocessor() for name, towers in self.inputs.items()}
        self._objectives: dict[str, ObjectiveConfig] = {
            name: objective for name, objective in config.all_objectives.items() if objective.needs_transcript
        }
        self._owned = {
            f"{name}_adapter_{own}": (name, own)
            for name, towers in self.inputs.items()
            for own in towers.adapter.objectives(f"{name}_adapter")
        }

    @classmethod
    def from_config(cls, config: ModelConfig) -> SpeechLMMProcessor:
        """A processor for a new model."""
        return cls(config, config.text_decoder.build_tokenizer())

    @classmethod
    def from_pretrained(cls, path: str | Path) -> SpeechLMMProcessor:
        """The processor of a saved model.

        Raises:
            CheckpointError: The folder holds none.
        """
        from speechlmm_core.checkpoint.load import read_model_config, resolve_model_path

        folder = resolve_model_path(path)
        config = read_model_config(folder)
        return cls(config, config.text_decoder.build_tokenizer(str(folder)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Saves the tokenizer and the chat template; everything else follows from the model's configuration."""
        self.tokenizer.save_pretrained(Path(folder))

    def __call__(
        self,
        conversations: Sequence[Sequence[MessageLike]],
        *,
        with_answer: bool = False,
        packed: bool = False,
        padding_side: Literal["right", "left"] = "left",
    ) -> dict[str, Any]:
        """Makes a batch of conversations: `sample` for each, then `collate`."""
        samples = [self.sample(messages, with_answer=with_answer) for messages in conversations]
        return self.collate(samples, packed=packed, padding_side=padding_side)

    def sample(
        self, messages: Sequence[MessageLike], *, with_answer: bool, transform: Transform | None = None
    ) -> ProcessedSample:
        """Tokenises a conversation and loads its media.

        Args:
            messages: The conversation, the answer included or not.
            with_answer: Whether the conversation ends with the answer (training), or a generation prompt follows.
            transform: Changes a medium of an input after it is loaded; augmentation comes in here.

        Raises:
            DataError: The messages do not fit the model.
            MediaError: A medium cannot be used.
        """
        parsed = self._parse(messages, with_answer=with_answer)
        pieces = self.tokenizer.encode_chat(parsed, add_generation_prompt=not with_answer)
        items = [piece.item for piece in pieces if isinstance(piece, MediaPiece)]
        media = [(item["type"], self.inputs[item["type"]].encoder.load(item)) for item in items]
        if transform is not None:
            media = [(name, transform(name, medium)) for name, medium in media]
        lengths = [self._target_length(item, with_answer=with_answer) for item in items]
        num_frames = [
            self._num_frames(name, medium, item, length)
            for (name, medium), item, length in zip(media, items, lengths, strict=True)
        ]
        layout = build_layout(pieces, num_frames, self.tokenizer.pad_token_id)
        return ProcessedSample(layout, media, self._targets(items), lengths if with_answer else [])

    def sizes(
        self, messages: Sequence[MessageLike], num_samples: Sequence[int], *, with_answer: bool = True
    ) -> tuple[int, int]:
        """The size of a conversation, without loading its media; the batch plan rests on it.

        Args:
            messages: The conversation.
            num_samples: Samples of each medium, in order of appearance, at its encoder's sampling rate.
            with_answer: As for `sample`.

        Returns:
            Positions in the language model, and encoder frames of all media together.

        Raises:
            DataError: The messages do not fit the model.
            MediaError: A medium is longer than its encoder takes.
        """
        parsed = self._parse(messages, with_answer=with_answer)
        positions, items = self.tokenizer.count_chat(parsed, add_generation_prompt=not with_answer)
        if len(items) != len(num_samples):
            raise DataError(f"got the lengths of {len(num_samples)} media for messages that hold {len(items)}")
        frames = 0
        for item, samples in zip(items, num_samples, strict=True):
            towers = self.inputs[item["type"]]
            towers.encoder.check_length(samples)
            encoded = towers.encoder.output_lengths(samples)
            frames += encoded
            positions += planned_frames(towers, encoded, self._target_length(item, with_answer=with_answer))
        return positions, frames

    def collate(
        self,
        samples: Sequence[ProcessedSample],
        *,
        packed: bool = False,
        padding_side: Literal["right", "left"] = "right",
    ) -> dict[str, Any]:
        """Lays out a batch.

        Args:
            samples: Processed samples.
            packed: Put all samples into one row, attention never crossing between them.
            padding_side: `right` for training, `left` for generation; without meaning when packed.

        Returns:
            Nested dict of tensors, as `speechlmm_core.splice.plan` describes it; beside them `media` by input,
            `targets` by objective, `samples` with the sample of each medium, and `num_items`, the units of the losses
            (`items_by_sample`: those of each sample, as NumPy arrays). These are the same keys for every batch:
            `supervised_tokens`; for each input `<input>_media` and `<input>_frames`; for each objective with targets
            `<objective>_targets` (target ids), `<objective>_valid` (media with a target) and `<objective>_infeasible`
            (media too short for theirs).
        """
        present = [name for name in self.inputs if any(name == n for s in samples for n, _ in s.media)]
        batch = plan_batch(
            [sample.layout for sample in samples],
            packed=packed,
            padding_side=padding_side,
            pad_token_id=self.tokenizer.pad_token_id,
            input_order=present,
            dynamic_inputs=[name for name in present if not self._is_exact(name)],
        )
        batch["media"] = {name: self._media(name, samples) for name in present}
        batch["samples"]["media"] = {name: media_samples(samples, name) for name in present}
        counts: dict[str, int] = {"supervised_tokens": int(batch["supervised"]["ids"].numel())}
        for name in self.inputs:
            media = batch["media"].get(name)
            counts[f"{name}_media"] = len(media["lengths"]) if media else 0
            counts[f"{name}_frames"] = int(media["encoder_lengths"].sum()) if media else 0
        batch["targets"] = {}
        for name, objective in self._objectives.items():
            counts |= {f"{name}_{unit}": 0 for unit in ("targets", "valid", "infeasible")}
            stage_input = objective.stages[0].rpartition("_")[0]
            if stage_input in present:
                lengths = self._aligned_frames(name, objective, batch["media"][stage_input])
                targets = [target for sample in samples for target in sample.targets.get(name, ())]
                batch["targets"][name] = pad_targets(objective, targets, lengths, counts, name)
        batch["num_items"] = counts
        owners = {name: objective.stages[0].rpartition("_")[0] for name, objective in self._objectives.items()}
        batch["items_by_sample"] = items_by_sample(batch, list(self.inputs), owners)
        return batch

    def _parse(self, messages: Sequence[MessageLike], *, with_answer: bool) -> list[Message]:
        parsed = [m if isinstance(m, Message) else Message.model_validate(m) for m in messages]
        if not parsed:
            raise DataError("got no messages; expected at least one")
        if with_answer and parsed[-1].role not in ("assistant", "text"):
            raise DataError(f"expected the conversation to end with the assistant's answer, got {parsed[-1].role!r}")
        for message in parsed:
            if message.role == "assistant" and message.media:
                raise DataError(
                    f"the assistant's message holds {message.media[0]['type']!r}, but this model puts out text only: "
                    "it has no output codec"
                )
            for item in message.media:
                if item["type"] not in self.inputs:
                    raise DataError(f"a message holds {item['type']!r}, but this model takes {self._known(item)}")
        return parsed

    def _known(self, item: Mapping[str, Any]) -> str:
        """What the model takes; where the item names a modality, the inputs that it could have named."""
        roles = [name for name, towers in self.inputs.items() if towers.encoder.modality == item["type"]]
        if roles:
            return f"it by the name of the input that it is for: {' or '.join(map(repr, roles))}"
        return ", ".join(self.inputs) or "only text"

    def _num_frames(self, name: str, medium: Medium, item: Mapping[str, Any], target_length: int) -> int:
        encoder, adapter = self.inputs[name].encoder, self.inputs[name].adapter
        try:
            encoder.check_length(medium.num_samples)
        except MediaError as exc:
            raise MediaError(f"{item_name(item)!r}: {exc}") from exc
        encoded = encoder.output_lengths(medium.num_samples)
        frames = adapter.max_output_lengths(encoded, encoder.frame_rate)
        if frames < 1 and encoded:
            raise MediaError(
                f"{item_name(item)!r} is too short: {name}_adapter ({adapter.type}) makes no frame of its "
                f"{encoded} encoder frames; leave it out, or let the adapter take fewer frames for one"
            )
        if frames < 1:
            raise MediaError(
                f"{item_name(item)!r} is too short: {medium.num_samples} samples give no frame; "
                f"expected at least one frame of {float(1 / encoder.frame_rate):.3f} s"
            )
        return planned_frames(self.inputs[name], encoded, target_length)

    def _targets(self, items: Sequence[Mapping[str, Any]]) -> dict[str, list[list[int] | None]]:
        found: dict[str, list[list[int] | None]] = {}
        for name, objective in self._objectives.items():
            stage_input = objective.stages[0].rpartition("_")[0]
            found[name] = [
                None
                if item.get("transcript") is None
                else objective.encode_transcript(item["transcript"], self.tokenizer)
                for item in items
                if item["type"] == stage_input
            ]
        return found

    def _target_length(self, item: Mapping[str, Any], *, with_answer: bool) -> int:
        """Tokens of a medium's transcript, for an adapter that learns from them how many frames to put out, else -1.

        An answer that is still to be generated must not lean on them.
        """
        transcript = item.get("transcript")
        if transcript is None or not with_answer or self._is_exact(item["type"]):
            return -1
        text = " ".join(transcript.split())
        return len(self.tokenizer.encode(text)) if text else 0

    def _media(self, name: str, samples: Sequence[ProcessedSample]) -> dict[str, Any]:
        media = [medium for sample in samples for n, medium in sample.media if n == name]
        encoder = self.inputs[name].encoder
        num_samples = torch.tensor([medium.num_samples for medium in media], dtype=torch.long)
        frames = encoder.output_lengths(num_samples)  # (B,)
        targets = [
            target
            for sample in samples
            for (n, _), target in zip(sample.media, sample.target_lengths or [-1] * len(sample.media), strict=True)
            if n == name
        ]
        known = {"target_lengths": torch.tensor(targets)} if any(target >= 0 for target in targets) else {}
        planned = [planned_frames(self.inputs[name], *one) for one in zip(frames.tolist(), targets, strict=True)]
        lengths = torch.tensor(planned, dtype=torch.long)  # (B,)
        return {
            **known,
            "inputs": self._preprocessors[name](media),
            "num_frames": int(lengths.max()),
            "lengths": lengths,
            "encoder_lengths": frames,
            "exact": self._is_exact(name),
        }

    def _is_exact(self, name: str) -> bool:
        encoder, adapter = self.inputs[name].encoder, self.inputs[name].adapter
        return adapter.output_lengths(1, encoder.frame_rate) is not None

    def _aligned_frames(self, name: str, objective: ObjectiveConfig, media: Mapping[str, Any]) -> Tensor:
        """Frames (B,) that an objective has for a medium's target: its stage's, or those that its adapter says."""
        if name in self._owned:
            stage_input, own = self._owned[name]
            towers = self.inputs[stage_input]
            return towers.adapter.objective_frames(own, media["encoder_lengths"], towers.encoder.frame_rate)
        return media["encoder_lengths"] if objective.stages[0].endswith("_encoder") else media["lengths"]
