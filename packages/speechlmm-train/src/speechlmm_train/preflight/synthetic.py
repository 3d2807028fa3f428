"""Micro-batches made of nothing but their sizes, where the data of a run are not there yet.

Shapes: L samples, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from speechlmm_core.chat.tokenizer import ChatTokenizer, MediaPiece, TextPiece
from speechlmm_core.config import InputConfig, ModelConfig
from speechlmm_core.errors import SpeechLMMError
from speechlmm_core.media.medium import Medium
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.processor.sample import ProcessedSample
from speechlmm_core.splice.plan import build_layout
from speechlmm_train.batching.plan import FRAMES_PER_TOKEN_BUDGET
from speechlmm_train.stage_config import DEFAULT_TOKEN_BUDGET, ResolvedStage

SECONDS = (10.0, 5.0, 2.0, 1.0)
"""Lengths of a medium that are tried until one fits into the budgets."""
TEXT_TOKENS, ANSWER_TOKENS = 64, 32
"""Tokens of an example beside its medium, and those of them that are supervised."""
TARGETS = 16
"""Target ids of a medium in objectives that have some."""


PICTURES = {"video": (96, 96)}
"""What a sample of a medium is beside time, by modality; nothing for audio."""


class StandInTokenizer:
    """Stands for a tokenizer that is not downloaded yet; sizes do not depend on what tokens mean."""

    pad_token_id = 0

    def encode(self, text: str) -> list[int]:
        """An id for every word."""
        return [1 for _ in text.split()]


def stand_in_processor(config: ModelConfig) -> SpeechLMMProcessor:
    """The model's processor; with a tokenizer that stands for its own where that is not there."""
    try:
        return SpeechLMMProcessor.from_config(config)
    except SpeechLMMError:
        return SpeechLMMProcessor(config, cast(ChatTokenizer, StandInTokenizer()))


def synthetic_batch(stage: ResolvedStage, processor: SpeechLMMProcessor) -> dict[str, Any]:
    """A micro-batch that fills the stage's budgets with examples of one medium each, ten seconds long if such fit.

    Args:
        stage: The stage.
        processor: Lays the batch out.

    Raises:
        SpeechLMMError: The preprocessor of an encoder cannot be made without its checkpoint.
    """
    training = stage.training
    inputs = list(processor.inputs.items())
    seconds, count = SECONDS[-1], 0
    for seconds in SECONDS:
        sizes = [_size(towers, seconds) for _, towers in inputs] or [(0, 0, 0)]
        positions = max(size[2] for size in sizes) + TEXT_TOKENS
        frames = max(size[1] for size in sizes)
        count = training.per_device_train_batch_size or _count(stage, positions, frames)
        if count:
            break
    samples = [
        _sample(processor, inputs[number % len(inputs)] if inputs else None, seconds) for number in range(count or 1)
    ]
    return processor.collate(samples, packed=training.packed)


def _count(stage: ResolvedStage, positions: int, frames: int) -> int:
    """Examples of this size that a micro-batch holds."""
    tokens = stage.training.token_budget
    tokens = DEFAULT_TOKEN_BUDGET if tokens in (None, "auto") else int(tokens)
    by_tokens = tokens // positions
    limit = stage.training.frame_budget or FRAMES_PER_TOKEN_BUDGET * tokens * frames / positions
    return min(by_tokens, int(limit // frames)) if frames else by_tokens


def _size(towers: InputConfig, seconds: float) -> tuple[int, int, int]:
    """Samples of a medium, its encoder frames and its positions."""
    samples = round(seconds * towers.encoder.sampling_rate)
    frames = int(towers.encoder.output_lengths(samples))
    return samples, frames, int(towers.adapter.max_output_lengths(frames, towers.encoder.frame_rate))


def _sample(processor: SpeechLMMProcessor, named: tuple[str, InputConfig] | None, seconds: float) -> ProcessedSample:
    text = TextPiece([1] * TEXT_TOKENS, [False] * (TEXT_TOKENS - ANSWER_TOKENS) + [True] * ANSWER_TOKENS)
    if named is None:
        return ProcessedSample(build_layout([text], [], 0))
    name, towers = named
    samples, _, positions = _size(towers, seconds)
    layout = build_layout([MediaPiece({"type": name}), text], [positions], 0)
    targets: dict[str, Sequence[Sequence[int] | None]] = {}
    for objective, config in processor.config.all_objectives.items():
        if config.needs_transcript and config.stages[0].rpartition("_")[0] == name:
            targets[objective] = [[1] * TARGETS]
    return ProcessedSample(layout, [(name, _medium(towers, samples))], targets, [-1])


def _medium(towers: InputConfig, samples: int) -> Medium:
    encoder = towers.encoder
    shape = (samples, *PICTURES.get(encoder.modality, ()))
    return Medium(torch.zeros(shape), encoder.sampling_rate)
