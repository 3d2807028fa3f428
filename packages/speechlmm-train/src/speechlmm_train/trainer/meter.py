"""What a training's log lines say: losses, speed, waiting, the mixture."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.trainer.best import RunState
from speechlmm_train.trainer.mixture import Mixture


class Meter:
    """Sums up what happens between two log lines of a stage.

    Args:
        processor: Knows the frame rates.
        stage: The stage's name.
        mixture: Counts what the plan draws; None where that is not logged.
        run_state: What the run remembers; takes what was drawn.
    """

    def __init__(self, processor: SpeechLMMProcessor, stage: str, mixture: Mixture | None, run_state: RunState) -> None:
        self._inputs = processor.inputs
        self._stage = stage
        self._mixture = mixture
        self._run_state = run_state
        self._losses: dict[str, Tensor] = {}
        self._steps, self._counted = 0, -1
        self._seconds = self._tokens = self._waited = 0.0
        self._since = time.perf_counter()

    def begin(self, step: int) -> None:
        """A step begins; what was drawn is counted from the first one on."""
        if self._counted < 0:
            self._counted = step

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts what is done meanwhile as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def measure(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Takes the micro-batches of a step."""
        for batch in batches:
            for name, media in batch["media"].items():
                self._seconds += int(media["encoder_lengths"].sum()) / float(self._inputs[name].encoder.frame_rate)
            mask = batch.get("attention_mask")
            self._tokens += batch["input_ids"].numel() if mask is None else int(mask.sum())
        self._steps += 1

    def add_loss(self, name: str, mean: Tensor) -> None:
        """Takes a micro-batch's share of an objective's loss."""
        self._losses[name] = self._losses.get(name, torch.zeros_like(mean)) + mean

    def figures(self, logs: Mapping[str, float], step: int, args: TrainingArguments) -> dict[str, float]:
        """The figures of the steps since the call before.

        Args:
            logs: What transformers logs.
            step: Steps that the stage has done.
            args: The stage's arguments.
        """
        steps, seconds = max(self._steps, 1), max(time.perf_counter() - self._since, 1e-9)
        figures = {
            "train/loss": logs["loss"] / args.world_size,
            **{f"train/{name}": float(total) / steps for name, total in self._losses.items()},
            "train/lr": logs["learning_rate"],
            "train/audio_seconds_per_second": self._seconds * args.world_size / seconds,
            "train/tokens_per_second": self._tokens * args.world_size / seconds,
            "train/data_wait": min(self._waited / seconds, 1.0),
            **self._shares(step),
        }
        if "grad_norm" in logs:
            figures["train/grad_norm"] = logs["grad_norm"]
        self.count_drawn(step)
        self._losses, self._steps = {}, 0
        self._seconds = self._tokens = self._waited = 0.0
        self._since = time.perf_counter()
        return figures

    def _shares(self, step: int) -> dict[str, float]:
        """Shares of the tasks in the steps since the line before."""
        if self._mixture is None or len(self._mixture.names) < 2:
            return {}
        return self._mixture.figures(self._mixture.count(step - self._steps, step))

    def count_drawn(self, step: int) -> None:
        """Adds what the steps since the last call drew to what the stage has drawn."""
        if self._mixture is None or step <= self._counted:
            return
        drawn = self._run_state.drawn.setdefault(self._stage, {})
        for name, row in zip(self._mixture.names, self._mixture.count(self._counted, step).tolist(), strict=True):
            drawn[name] = [sum(pair) for pair in zip(drawn.get(name, (0.0, 0.0, 0.0)), row, strict=True)]
        self._counted = step

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what is done meanwhile out of the training's speed."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began
