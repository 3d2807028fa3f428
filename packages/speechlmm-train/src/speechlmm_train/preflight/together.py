"""Tries out the largest micro-batches where the weights are spread over processes, so that none could do it alone.

The model is wrapped as the stage will wrap it, and goes a few steps with a learning rate of zero: out-of-memory, an
operation that fails and a loss that is no number come up as they would in training. Then the wrapping is taken off, as
between two stages, and the weights are bit for bit what they were.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from speechlmm_core.errors import ConfigError, OutOfStepError, SpeechLMMError
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.config import RunConfig
from speechlmm_train.parallel.deepspeed_config import PRESETS, given_config
from speechlmm_train.parallel.quiet import quiet
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.parallel.release import abandon, release
from speechlmm_train.parallel.touch import unreached
from speechlmm_train.parallel_names import Mode
from speechlmm_train.preflight.deadline import Deadline
from speechlmm_train.preflight.layout import BEFORE, STEPPING, Layout
from speechlmm_train.preflight.memory import changed
from speechlmm_train.preflight.restore import untouched
from speechlmm_train.preflight.step import stage_weights
from speechlmm_train.preflight.tries import Stepping, Tries
from speechlmm_train.preflight.tryout import MISHAPS, device_of, memory_named, not_finite, too_large, unusable, without
from speechlmm_train.preflight.tryout import OutOfMemoryError as TooLittleMemoryError
from speechlmm_train.stage_config import ResolvedStage
from speechlmm_train.trainer.arguments import training_arguments
from speechlmm_train.trainer.callbacks import Reporter
from speechlmm_train.trainer.checks import freeze_for
from speechlmm_train.trainer.divergence import Fault
from speechlmm_train.trainer.output_folder import OutputFolder
from speechlmm_train.trainer.stage_context import stage_context
from speechlmm_train.trainer.stage_data import StageData
from speechlmm_train.trainer.trainer import SpeechLMMTrainer
from speechlmm_train.watching_config import Watching

logger = logging.getLogger(__name__)

_OF_THE_TRAINING = ("optimizer", "scheduler", "gradient_accumulation_steps", "train_batch_size")
"""What a user's DeepSpeed configuration may repeat of the training's settings, which are others here."""
_NUMBERS_ALONE = Watching(max_loss=None, stop_on_explosion=None)
"""What a loss is judged by: of how large it may be, a micro-batch by itself tells nothing."""


@dataclass(frozen=True)
class Together:
    """Tries out the stages of a run on all processes at once.

    Args:
        config: The run.
        stages: Its stages with their data.
        model: The model, which has been through `check_stage` for each of them.
        ranks: The processes, each of which has to call it.
        mode: How the model is spread.
        whole: Components that no stage trains.
        base: Folder where relative paths start.
    """

    config: RunConfig
    stages: Sequence[StageData]
    model: SpeechLMM
    ranks: Ranks
    mode: Mode
    whole: frozenset[str]
    base: Path | None = None

    def try_out(self, deadline: Deadline) -> list[str]:
        """Runs each stage's largest micro-batches; the model, its buffers and random numbers stay what they were.

        Args:
            deadline: When no further stage is begun.

        Returns:
            Warnings: trained parameters that get no gradient.

        Raises:
            ConfigError: The model cannot process a micro-batch, or a loss or a gradient is no number.
            DataError: An example cannot be loaded.
            OutOfStepError: This process failed where the others may not have.
        """
        warnings: list[str] = []
        with untouched(self.model), TemporaryDirectory() as folder:
            for index, stage in enumerate(self.stages):
                if index and not self.ranks.broadcast(bool(deadline.left)):
                    logger.info("the time for tries is over before stage %r", stage.settings.name)
                    break
                freeze_for(self.model, stage.settings)
                warnings += self._try_out(index, Path(folder))
                gc.collect()  # the trainer and its optimiser
        return warnings

    def _try_out(self, index: int, folder: Path) -> list[str]:
        stage = self.stages[index]
        tries = Tries(stage, self.ranks.rank)
        layout = Layout.of(self.model, stage.settings, world_size=stage.world_size, base=self.base)
        try:
            with memory_named(), quiet(), self.ranks.named("trying out the largest micro-batches"):
                trainer = self._trainer(index, tries, folder)
                try:
                    trainer.train()
                except SpeechLMMError:  # of all processes
                    release(self.model, trainer.model_wrapped)
                    raise
        except SpeechLMMError:
            raise
        except Exception as exc:
            abandon(self.model, stage.settings.training.parallel)
            if (told := _told(stage, tries, layout, exc)) is None:
                raise
            raise OutOfStepError(told) from exc
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        idle = [names[one] for one in trainer.idle or () if one in names]
        release(self.model, trainer.model_wrapped)
        return without(idle, self.model, stage.settings.name, tries.inputs)

    def _trainer(self, index: int, tries: Tries, folder: Path) -> _Trainer:
        stage, settings = self.stages[index], self.stages[index].settings
        context = stage_context(self.config, self.stages, index, mode=self.mode, whole=self.whole)
        context = replace(
            context,
            weights=stage_weights(self.model, settings),
            lr_groups=dict.fromkeys(context.lr_groups, 0.0),
            mixture=None,
            watching=_NUMBERS_ALONE,
        )
        steps = len(tries.order)
        return _Trainer(
            model=self.model,
            args=_arguments(settings, folder, steps=steps, world_size=stage.world_size, base=self.base),
            processor=stage.processor,
            batches=tries,
            stage=context,
            folder=OutputFolder(folder),
            reporter=Reporter([], total_steps=steps, first_step=0, progress=False),
            callbacks=[Stepping(tries)],
            ranks=self.ranks,
        )


def _told(stage: StageData, tries: Tries, layout: Layout, exc: Exception) -> str | None:
    """What failed in this process, in words; None for a fault of our own code."""
    too_little, device = isinstance(exc, TooLittleMemoryError), device_of(stage.settings.training)
    if tries.batch is None or tries.stepping:
        when = STEPPING if tries.stepping else BEFORE
        return layout.too_large(exc, when=when, device=device) if too_little else layout.unusable(exc, when=when)
    if too_little:
        return too_large(stage, tries.batch, tries.micro_batch, device)
    return unusable(stage, tries.batch, tries.micro_batch, exc) if isinstance(exc, MISHAPS) else None


class _Trainer(SpeechLMMTrainer):
    """A trainer that writes and logs nothing, and calls what goes wrong a fault of the configuration."""

    idle: set[int] | None = None
    """Trained parameters that no micro-batch has given a gradient so far, by identity; None before the first."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        pass

    def _measure_parts(self) -> None:
        pass

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in training; with DeepSpeed, whose gradients are its own, looks at what the loss depends on."""
        found = super().compute_loss(model, inputs, *args, **kwargs)
        if self.stage.mode == "zero":
            loss: Tensor = found[0] if isinstance(found, tuple) else found
            self._note(unreached(loss, self._trained()))
        return found

    @property
    def _reached(self) -> list[nn.Parameter]:  # pyright: ignore[reportIncompatibleVariableOverride]  # it is read alone
        # Asked for between the backward pass and the gradients of zero that it is asked for.
        self._note([parameter for parameter in self._trained() if parameter.grad is None])
        return super()._reached

    def _trained(self) -> list[nn.Parameter]:
        assert self.model is not None
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _note(self, idle: list[nn.Parameter]) -> None:
        own = {id(parameter) for parameter in idle}
        self.idle = own if self.idle is None else self.idle & own

    def _act(self, fault: Fault | None, grad_norm: Tensor | float | None) -> None:
        if fault is None:
            return
        assert isinstance(self.model, SpeechLMM)
        own = [name for name, one in self.model.named_parameters() if not _own_part(one, self.ranks).isfinite().all()]
        bad = dict.fromkeys(name for names in self.ranks.gather(own) for name in names)
        raise ConfigError(not_finite(self.stage.name, fault.objective, list(bad)))


def _own_part(parameter: Any, ranks: Ranks) -> Tensor:
    """What this process holds of a parameter."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().detach()
    part: Tensor | None = getattr(parameter, "ds_tensor", None)
    if part is None:
        return parameter.detach()
    # What fills up the last part was never written.
    return part.detach().flatten()[: max(parameter.ds_numel - ranks.rank * part.numel(), 0)]


def _arguments(
    settings: ResolvedStage, folder: Path, *, steps: int, world_size: int, base: Path | None
) -> TrainingArguments:
    """The stage's arguments for a few steps of one micro-batch each, which change nothing and write nothing."""
    training = settings.training
    own: dict[str, Any] = {"micro_batches_per_step": world_size, "save_steps": None}
    name = training.deepspeed_config
    if name is not None and name not in PRESETS:
        given = {key: value for key, value in given_config(name, base).items() if key not in _OF_THE_TRAINING}
        own["deepspeed_config"] = str(folder / "deepspeed.json")
        (folder / "deepspeed.json").write_text(json.dumps(given), encoding="utf-8")
    args = training_arguments(
        changed(settings, **own), output_dir=str(folder), max_steps=steps, world_size=world_size, base=base
    )
    args.learning_rate, args.lr_scheduler_type, args.lr_scheduler_kwargs = 0.0, SchedulerType.CONSTANT, {}
    args.warmup_steps = 0
    return args
