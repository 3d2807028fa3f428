"""A thin subclass of transformers' Trainer: our batches, our losses, our checkpoints.

What it changes: batches come from the batch plan, from the right step on; every loss is divided by its own global
count; random numbers are a function of (seed, stage, step, rank), so that a resumed run draws the same dropout as an
uninterrupted one; checkpoints are written whole or not at all.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from speechlmm_core.interfaces.objective import Schedule, weight_at
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.trainer.best import RunState
from speechlmm_train.trainer.callbacks import Reporter
from speechlmm_train.trainer.checkpointing import write_checkpoint
from speechlmm_train.trainer.groups import optimizer_groups
from speechlmm_train.trainer.meter import Meter
from speechlmm_train.trainer.mixture import Mixture
from speechlmm_train.trainer.output_folder import OutputFolder


@dataclass(frozen=True)
class StageContext:
    """What a trainer must know about the stage that it runs."""

    index: int
    name: str
    first_total_step: int
    """Steps that earlier stages have done."""
    weights: Mapping[str, float | Schedule]
    """Weights of the objectives."""
    lr_groups: Mapping[str, float] = field(default_factory=dict[str, float])
    own_lr_groups: bool = True
    """Whether each of them has to match something that the stage trains."""
    save: Literal["full", "trainable"] = "full"
    save_total_limit: int | None = None
    seed: int = 0
    mixture: Mixture | None = None
    """Counts what the plan draws; None where that is not logged."""


class SpeechLMMTrainer(Trainer):
    """Trains one stage.

    Args:
        model: The model, frozen as the stage wants it.
        args: Its arguments.
        processor: Saved beside the weights.
        batches: This rank's micro-batches, from the step on that the stage starts or goes on with.
        stage: The stage.
        folder: The output folder.
        reporter: Where figures go.
        run_state: What the run remembers of its evaluations; goes into checkpoints.
        callbacks: Further callbacks.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: SpeechLMM,
        args: TrainingArguments,
        processor: SpeechLMMProcessor,
        batches: Iterable[dict[str, Any]],
        stage: StageContext,
        folder: OutputFolder,
        reporter: Reporter,
        run_state: RunState | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        super().__init__(model=model, args=args, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Step(reporter, stage.name))
        self.processor = processor
        self.batches = batches
        self.stage = stage
        self.folder = folder
        self.reporter = reporter
        self.run_state = run_state or RunState()
        self.meter = Meter(processor, stage.name, stage.mixture, self.run_state)
        self._counts: dict[str, int] = {}

    @property
    def total_step(self) -> int:
        """Steps done in all stages."""
        return self.stage.first_total_step + self.state.global_step

    def get_train_dataloader(self) -> Any:
        """This rank's micro-batches; not prepared by accelerate, which would shard them a second time."""
        return _Endless(self.batches)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """Fetches a step's micro-batches, counts what their losses are divided by, and seeds the step."""
        self.meter.begin(self.state.global_step)
        with self.meter.waiting():
            batches = [next(epoch_iterator) for _ in range(num_batches)]
        self._counts = self._global_counts(batches)
        self.meter.measure(batches)
        seed_step(self.stage.seed, self.stage.index, self.state.global_step, self.args.process_index)
        return batches, None

    def _global_counts(self, batches: list[dict[str, Any]]) -> dict[str, int]:
        units = sorted({unit for batch in batches for unit in batch["num_items"]})
        counts = torch.tensor([sum(batch["num_items"].get(unit, 0) for batch in batches) for unit in units])
        if self.args.world_size > 1:
            reduced = self.accelerator.reduce(counts.to(self.args.device), "sum")
            assert isinstance(reduced, Tensor)
            counts = reduced
        return dict(zip(units, counts.tolist(), strict=True))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of the losses, each divided by its count over the whole step and all ranks."""
        progress = self.state.global_step / max(self.state.max_steps, 1)
        weights = {name: weight_at(weight, progress) for name, weight in self.stage.weights.items()}
        outputs = model(objective_weights=weights, **inputs)
        total: Tensor | None = None
        for name, loss in outputs.losses.items():
            mean = loss.sum / max(self._counts.get(loss.unit, 0), 1)
            self.meter.add_loss(name, mean.detach())
            term = weights[name] * mean
            total = term if total is None else total + term
        if total is None:
            # Text alone while only objectives that need a medium have a weight: a zero that backward can start from.
            parameter = next(parameter for parameter in model.parameters() if parameter.requires_grad)
            total = parameter.flatten()[:0].sum()
        # Gradients are averaged over the ranks, but the counts are already global.
        scaled = total * self.args.world_size
        return (scaled, outputs) if return_outputs else scaled

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser, with a group for each learning rate in `lr_groups`."""
        if self.optimizer is None and self.stage.lr_groups:
            target = model or self.model
            assert target is not None
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args)
            groups = optimizer_groups(
                target,
                self.stage.lr_groups,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                decays=set(self.get_decay_parameter_names(target)),
                strict=self.stage.own_lr_groups,
            )
            self.optimizer = cls(list(groups), **kwargs)
        return super().create_optimizer(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hands every loss under its own name, the rates and the speed to the reporter."""
        if "loss" not in logs:  # transformers' summary at the end of training
            return
        self.reporter.log(self.total_step, self.stage.name, self.meter.figures(logs, self.state.global_step, self.args))

    def paused(self) -> AbstractContextManager[None]:
        """Leaves what is done meanwhile out of the training's speed."""
        return self.meter.paused()

    def warn(self, warning: str) -> None:
        """Reports a warning of this step."""
        self.reporter.warn(self.total_step, self.stage.name, warning)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.meter.count_drawn(self.state.global_step)
        write_checkpoint(self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing to load: the model was built with the checkpoint's weights."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to load: every step is seeded by itself."""


class _Endless:
    """Micro-batches without a length, so that the trainer counts steps and not epochs."""

    def __init__(self, batches: Iterable[dict[str, Any]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)


class _Step(TrainerCallback):
    """Moves the progress bar, and has the last step's figures logged, however few steps there are."""

    def __init__(self, reporter: Reporter, stage: str) -> None:
        self.reporter = reporter
        self.stage = stage

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After each optimiser step."""
        self.reporter.step(self.stage)
        control.should_log = control.should_log or state.global_step >= state.max_steps


def seed_step(seed: int, stage: int, step: int, rank: int) -> None:
    """Seeds every generator for one step of one rank."""
    value = int(np.random.SeedSequence([seed, stage, step, rank]).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
