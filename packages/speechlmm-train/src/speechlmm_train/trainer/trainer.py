"""A thin subclass of transformers' Trainer: our batches, our losses, our checkpoints.

What it changes: batches come from the batch plan, from the right step on; every loss is divided by its own global
count; random numbers are a function of (seed, stage, step, micro-batch), so that a run draws the same dropout on any
number of processes, and resumed or not; checkpoints are written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from speechlmm_core.interfaces.objective import weight_at
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.batching.loader import ORIGIN
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.parallel.touch import give_gradients, reached, statistics_kept, touched, unreached
from speechlmm_train.trainer.best import RunState
from speechlmm_train.trainer.callbacks import Reporter
from speechlmm_train.trainer.checkpointing import read_training_state, write_checkpoint
from speechlmm_train.trainer.divergence import Watch
from speechlmm_train.trainer.groups import optimizer_groups
from speechlmm_train.trainer.meter import Meter
from speechlmm_train.trainer.output_folder import OutputFolder
from speechlmm_train.trainer.preemption import StopRequest, StopWhenAsked
from speechlmm_train.trainer.progress import StepCallback
from speechlmm_train.trainer.schedule import cosine_with_restarts, is_ours
from speechlmm_train.trainer.seeding import seed_step
from speechlmm_train.trainer.spread import SpreadTrainer
from speechlmm_train.trainer.stage_context import StageContext
from speechlmm_train.trainer.tally import ITEMS

STOP = "/stop"
"""Stands beside the units of losses in what processes tell each other of a step."""


class SpeechLMMTrainer(SpreadTrainer):
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
        ranks: The processes.
        stop: Whether this process is asked to stop.
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
        ranks: Ranks | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        super().__init__(model=model, args=args, stage=stage, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self.add_callback(StepCallback(reporter, stage.name))
        self.add_callback(StopWhenAsked(self))
        self.processor = processor
        self.batches = batches
        self.folder = folder
        self.reporter = reporter
        self.run_state = run_state or RunState()
        self.ranks = ranks or Ranks()
        names, state = list(stage.weights), self.run_state
        self.meter = Meter(processor, stage.name, stage.mixture, state, objectives=names, utilisation=stage.utilisation)
        histories = state.loss_histories.get(stage.name)
        self.watch = Watch(stage.watching, names, self.ranks, getattr(batches, "locate", None), histories)
        self.stop = stop or StopRequest()
        self.stop_agreed = False
        """Whether a process was asked to stop before the step that is being done."""
        self.stopped = False
        """Whether the training has ended for that."""
        self._counts: dict[str, int] = {}
        self._number = 0
        self._unreached: dict[tuple[str, ...], list[nn.Parameter]] = {}

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trains until the stage ends; not a step where an evaluation that was put off has ended it."""
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """This rank's micro-batches; not prepared by accelerate, which would shard them a second time."""
        return _Endless(self.batches)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """Fetches a step's micro-batches, counts what their losses are divided by, and seeds the step."""
        self.meter.begin(self.state.global_step)
        with self.meter.waiting():
            fetched = self.ranks.share(lambda: [next(epoch_iterator) for _ in range(num_batches)], self._told)
        batches, counts = fetched
        self._counts = {unit: sum(one.get(unit, 0) for one in counts) for one in counts for unit in one}
        self.stop_agreed = self._counts.pop(STOP) > 0
        self.meter.measure(batches, self._counts)
        self.watch.begin()
        self._number = self.args.process_index
        return batches, None

    def _told(self, batches: list[dict[str, Any]]) -> dict[str, int]:
        """What the other processes hear of a step: what its micro-batches count, and whether to stop after it."""
        return {**_units(batches), STOP: int(self.stop.asked_by is not None)}

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Trains on a micro-batch, which has random numbers of its own on whichever process it is."""
        seed_step(self.stage.seed, self.stage.index, self.state.global_step, self._number)
        self._number += self.args.world_size
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.stage.mode in ("none", "fsdp2") and self.accelerator.sync_gradients:
            give_gradients(self._reached)
        return loss

    @cached_property
    def _reached(self) -> list[nn.Parameter]:
        """What the stage trains, but for towers whose input its data do not have."""
        assert isinstance(self.model, SpeechLMM)
        return reached(self.model, self.stage.inputs)

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
        batch = {name: value for name, value in inputs.items() if name not in (ORIGIN, ITEMS)}
        assert isinstance(self.model, SpeechLMM)
        with statistics_kept(self.model, inputs.get(ORIGIN, {}).get("spacers", ())):
            outputs = model(objective_weights=weights, loss_counts=self._counts, **batch)
        self.watch.begin_batch(inputs)
        for name, loss in outputs.losses.items():
            mean = loss.sum.detach() / max(self._counts.get(loss.unit, 0), 1)
            self.meter.add_loss(name, loss, mean, inputs)
            self.watch.add_loss(name, loss, mean)
        self.look_at_losses()
        total = outputs.loss
        if total is None or not total.requires_grad:
            # Text alone, while only what needs a medium is trained or has a weight: backward needs a place to start.
            parameter = next(parameter for parameter in model.parameters() if parameter.requires_grad)
            nothing = parameter.flatten()[:0].sum()
            total = nothing if total is None else total + nothing
        self.meter.add_total(total)
        if self.stage.mode == "ddp" and self.accelerator.sync_gradients:
            total = touched(total, self._without_gradient(total, (*inputs.get("media", ()), "/", *outputs.losses)))
        # Gradients are averaged over the ranks, but the counts are already global.
        scaled = total * self.args.world_size
        return (scaled, outputs) if return_outputs else scaled

    def _without_gradient(self, total: Tensor, kind: tuple[str, ...]) -> list[nn.Parameter]:
        """Trained parameters that micro-batches of a kind (their inputs and objectives) leave out."""
        if kind not in self._unreached:
            assert self.model is not None
            self._unreached[kind] = unreached(total, self.model.parameters())
        return self._unreached[kind]

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """Reads our own checkpoint, when all is laid out; DeepSpeed's are never looked for."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        return prepared

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the learning rate; whatever stays whole is back in the model by then."""
        self._hidden.close()
        if self.lr_scheduler is None and is_ours(kwargs := self.args.lr_scheduler_kwargs):
            warmup = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = cosine_with_restarts(
                optimizer or self.optimizer, kwargs, warmup_steps=warmup, total_steps=num_training_steps
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

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
        figures = self.meter.figures(logs, self.state.global_step, device=self.args.device, ranks=self.ranks)
        self.reporter.log(self.total_step, self.stage.name, figures)

    def paused(self) -> AbstractContextManager[None]:
        """Leaves what is done meanwhile out of the training's speed."""
        return self.meter.paused()

    def warn(self, warning: str) -> None:
        """Reports a warning of this step."""
        self.reporter.warn(self.total_step, self.stage.name, warning)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.meter.count_drawn(self.state.global_step)
        self.run_state.loss_histories[self.stage.name] = self.watch.judge.histories
        with self.paused():
            write_checkpoint(self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing to load: the model was built with the checkpoint's weights."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            read_training_state(self, Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing to load: it comes with the optimiser's state."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to load: every step is seeded by itself."""


def _units(batches: list[dict[str, Any]]) -> dict[str, int]:
    """What micro-batches count, by unit."""
    return {
        unit: sum(batch["num_items"].get(unit, 0) for batch in batches) for one in batches for unit in one["num_items"]
    }


class _Endless:
    """Micro-batches without a length, so that the trainer counts steps and not epochs."""

    def __init__(self, batches: Iterable[dict[str, Any]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)
