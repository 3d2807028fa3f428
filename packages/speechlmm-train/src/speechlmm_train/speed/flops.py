"""How many floating-point operations a training step needs for its real frames and tokens.

A step, forward and backward, is run on tensors that have shapes and no content, for a few lengths, and the operations
of its products and convolutions are counted by `torch.utils.flop_counter`. So frozen parts count without the gradients
of their weights (and without any where nothing before them learns), and low-rank adapters with theirs. What was counted
is fitted by a polynomial in frames and positions, whose squares are attention's; as in PaLM's MFU (Chowdhery et al.,
2022, arXiv 2204.02311, appendix B) each position attends to its whole sample, and what gradient checkpointing computes
twice counts once. Of an encoder that always fills a window, as many FLOPs count as real frames have a share in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from speechlmm_core.chat.tokenizer import MediaPiece, TextPiece
from speechlmm_core.config import InputConfig
from speechlmm_core.errors import MediaError
from speechlmm_core.lora.config import LoraAdapterConfig
from speechlmm_core.media.medium import Medium
from speechlmm_core.model.describe import meta_model
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.processor.sample import ProcessedSample
from speechlmm_core.splice.plan import build_layout
from speechlmm_train.config import RunConfig
from speechlmm_train.preflight.fake import ShapeRules, fake_batch, make_fake
from speechlmm_train.preflight.step import forward_backward, precision, stage_weights
from speechlmm_train.preflight.synthetic import PICTURES
from speechlmm_train.stage_config import ResolvedStage
from speechlmm_train.trainer.checks import freeze_for

TEXTS = (64, 256, 768)
"""Tokens beside the medium that are tried."""
ANSWERS = (16, 48)
"""Of these, tokens that are supervised."""
SECONDS = ((2.0, 5.0, 10.0), (0.5, 1.0, 2.0))
"""Lengths of a medium that are tried; the later ones for encoders that take no longer ones."""


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of samples as a polynomial."""

    sample: float
    position: float
    position_square: float
    supervised: float
    media: Mapping[str, tuple[float, float, float]]
    """By input: of each medium, each encoder frame, and the square of a medium's frames."""

    def __call__(self, sums: Mapping[str, float]) -> float:
        """FLOPs of a number of samples.

        Args:
            sums: As `speechlmm_train.trainer.tally.Work` has them.
        """
        total = self.sample * sums["examples"] + self.position * sums["positions"]
        total += self.position_square * sums["position_squares"] + self.supervised * sums["supervised"]
        for name, (medium, frame, square) in self.media.items():
            total += medium * sums[f"{name}_media"] + frame * sums[f"{name}_frames"]
            total += square * sums[f"{name}_frame_squares"]
        return total


def count_flops(
    config: RunConfig,
    stage: ResolvedStage,
    processor: SpeechLMMProcessor,
    *,
    adapters: Sequence[LoraAdapterConfig] | None = None,
) -> ModelFlops:
    """Counts what a stage's samples need.

    Args:
        config: The run.
        stage: The stage.
        processor: Lays batches out.
        adapters: All that the model has, those of `pretrained_checkpoint` too; by default those that the run puts on.

    Raises:
        SpeechLMMError: The model cannot be built so.
    """
    counter = _Counter(config, stage, processor, config.training.lora_adapters if adapters is None else adapters)
    inputs = list(processor.inputs)
    lengths = {name: counter.lengths(name) for name in inputs}
    first = inputs[0] if inputs else None
    base = lengths[first][0] if first else 0
    # Text is counted beside the shortest medium: without one, a frozen decoder would have no backward pass.
    runs = [counter.run(first, base, text, ANSWERS[0]) for text in TEXTS]
    answer = counter.run(first, base, TEXTS[0], ANSWERS[1])
    constant, position, square = _parabola([(1, run.positions, run.flops) for run in runs])
    supervised = (answer.flops - runs[0].flops) / (ANSWERS[1] - ANSWERS[0])
    media: dict[str, tuple[float, float, float]] = {}
    for name in inputs:
        points: list[tuple[float, float, float]] = []
        window = processor.inputs[name].encoder.fixed_frames
        for samples in lengths[name]:
            run = counter.run(name, samples, TEXTS[0], ANSWERS[0])
            text = position * run.positions + square * run.positions**2 + supervised * ANSWERS[0]
            points.append((run.rows if window else 1, run.frames, run.flops - text))
        row, frame, frame_square = _parabola(points)
        media[name] = (0.0, frame + row / window, frame_square) if window else (row, frame, frame_square)
    if not inputs:
        return ModelFlops(constant - supervised * ANSWERS[0], position, square, supervised, {})
    return ModelFlops(0.0, position, square, supervised, media)


def _parabola(points: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Coefficients of n, x and x² of what comes to y at the points (n, x, y); of fewer where x hardly differs."""
    n, x, y = np.array(points, dtype=np.float64).T
    scale = x.max()
    columns = [n, x / scale, (x / scale) ** 2][: len(set(x.tolist()))]
    coefficients, *_ = np.linalg.lstsq(np.stack(columns, axis=1), y)
    found = [float(value) / scale**power for power, value in enumerate(coefficients)]
    return found[0], found[1] if len(found) > 1 else 0.0, found[2] if len(found) > 2 else 0.0


def _addmm_flops(into: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    """FLOPs of adding a product of matrices to what is there, from their shapes; torch counts only the other form."""
    return 2 * left[0] * left[1] * right[1]


@dataclass(frozen=True)
class _Run:
    flops: float
    rows: int
    """Of the encoder's input: one, or as many as a medium is cut into."""
    frames: int
    positions: int


class _Counter:
    """The model without content, and samples made of nothing but their sizes."""

    def __init__(
        self,
        config: RunConfig,
        stage: ResolvedStage,
        processor: SpeechLMMProcessor,
        adapters: Sequence[LoraAdapterConfig],
    ) -> None:
        # Eager attention: the products of others cannot all be counted, and recompute some of them.
        plain = config.model.model_copy(update={"attn_implementation": "eager"})
        self.model: SpeechLMM = meta_model(plain, adapters=adapters)
        trained = {adapter.name for adapter in config.training.lora_adapters}
        self.model.frozen_adapters = frozenset(adapter.name for adapter in adapters) - trained
        freeze_for(self.model, stage)
        self.model.train()
        self.stage, self.processor = stage, processor
        self.mode = FakeTensorMode()
        make_fake(self.model, self.mode)

    def lengths(self, name: str) -> tuple[int, ...]:
        """Samples of media that the encoder takes."""
        encoder = self.processor.inputs[name].encoder
        long, short = (tuple(round(one * encoder.sampling_rate) for one in seconds) for seconds in SECONDS)
        try:
            encoder.check_length(long[-1])
        except MediaError:
            return short
        return long

    def run(self, name: str | None, samples: int, text: int, answer: int) -> _Run:
        """Counts the FLOPs of one sample."""
        sample = self._sample(name, samples, text, answer)
        batch = self.processor.collate([sample])
        media = batch["media"].get(name, {})
        frames = int(media["encoder_lengths"].sum()) if media else 0
        rows = len(media["inputs"]["lengths"]) if media else 0
        own, weights = fake_batch(batch, self.mode), stage_weights(self.model, self.stage)
        known = {torch.ops.aten.addmm_: _addmm_flops}
        with self.mode, ShapeRules(), FlopCounterMode(display=False, custom_mapping=known) as counted:
            forward_backward(self.model, own, weights, precision(self.stage, "cpu"))
        for parameter in self.model.parameters():
            parameter.grad = None
        return _Run(float(counted.get_total_flops()), rows, frames, sample.layout.num_positions)

    def _sample(self, name: str | None, samples: int, text: int, answer: int) -> ProcessedSample:
        piece = TextPiece([1] * text, [False] * (text - answer) + [True] * answer)
        pad = self.processor.tokenizer.pad_token_id
        if name is None:
            return ProcessedSample(build_layout([piece], [], pad))
        towers: InputConfig = self.processor.inputs[name]
        frames = int(towers.encoder.output_lengths(samples))
        bound = int(towers.adapter.max_output_lengths(frames, towers.encoder.frame_rate))
        layout = build_layout([MediaPiece({"type": name}), piece], [bound], pad)
        targets: dict[str, Any] = {
            objective: [[1] * min(answer, frames // 4)]
            for objective, config in self.processor.config.all_objectives.items()
            if config.needs_transcript and config.stages[0].rpartition("_")[0] == name
        }
        shape = (samples, *PICTURES.get(towers.encoder.modality, ()))
        medium = Medium(torch.zeros(shape), towers.encoder.sampling_rate)
        return ProcessedSample(layout, [(name, medium)], targets, [-1])
