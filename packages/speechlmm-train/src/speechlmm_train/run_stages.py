"""Trains the stages of a run, one after the other."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from speechlmm_core.checkpoint.load import restore
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.config import RunConfig
from speechlmm_train.parallel.quiet import quiet
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.parallel.release import release
from speechlmm_train.parallel_names import Mode
from speechlmm_train.preempted import PreemptedError
from speechlmm_train.speed.utilisation import utilisation_of
from speechlmm_train.trainer.arguments import training_arguments, trains_on_cpu
from speechlmm_train.trainer.best import RunState
from speechlmm_train.trainer.callbacks import Reporter
from speechlmm_train.trainer.checkpoints import Checkpoint
from speechlmm_train.trainer.checks import freeze_for
from speechlmm_train.trainer.evaluation import EvaluationCallback
from speechlmm_train.trainer.output_folder import OutputFolder
from speechlmm_train.trainer.preemption import StopRequest
from speechlmm_train.trainer.stage_context import stage_context
from speechlmm_train.trainer.stage_data import StageData
from speechlmm_train.trainer.trainer import SpeechLMMTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStages:
    """What all stages of a run share, and what trains each of them."""

    config: RunConfig
    stages: list[StageData]
    model: SpeechLMM
    processor: SpeechLMMProcessor
    folder: OutputFolder
    reporter: Reporter
    checkpoint: Checkpoint | None
    state: RunState
    stop: StopRequest
    ranks: Ranks
    mode: Mode
    whole: frozenset[str]
    """Components that no stage trains."""
    base: Path

    def train(self, index: int) -> None:
        """Trains one stage, or what is left of it; nothing if the checkpoint lies beyond it."""
        stage = self.stages[index]
        settings = stage.settings
        freeze_for(self.model, settings)  # also for stages that are done: it records what has ever been trained
        at = self.checkpoint.progress if self.checkpoint else None
        if at is not None and index <= at.stage:
            rule = stage.evaluation.rule if stage.evaluation else None
            ended = rule is not None and self.state.ends(settings.name, rule.patience)
            if index < at.stage or at.step >= stage.max_steps or ended:
                if index == at.stage:
                    self._take_best(stage, at.total_step)
                return
        self.state.stopped.pop(settings.name, None)
        here = self.checkpoint if at is not None and at.stage == index else None
        start_step = here.progress.step if here else 0
        trainer = self._trainer(index, start_step)
        if stage.evaluation is not None:
            trainer.add_callback(EvaluationCallback(trainer, stage.evaluation, settings.training))
        with quiet(), self.ranks.named("in training"):
            trainer.train(resume_from_checkpoint=str(here.path) if here else None)
        if trainer.stopped:
            raise PreemptedError(
                f"stopped after step {trainer.total_step}, as asked ({self.stop.asked_by or 'another process was'}); "
                "--resume goes on from there"
            )
        self.reporter.skip(stage.max_steps - trainer.state.global_step)
        if self.mode != "none":
            release(self.model, trainer.model_wrapped)
        self._take_best(stage, trainer.total_step)

    def _take_best(self, stage: StageData, last_step: int) -> None:
        """Goes on from the stage's best checkpoint, where that is asked for and is not the last."""
        name, best = stage.settings.name, self.state.best.get(stage.settings.name)
        if not stage.settings.training.load_best_model_at_end:
            return
        if best is None:
            logger.warning("stage %r was never evaluated, so that its last weights are its best", name)
            return
        if best.step == last_step:
            return
        logger.info("stage %r: the best weights are those of %s", name, best.checkpoint)
        self.ranks.together(lambda: restore(self.model, self.folder.path / best.checkpoint))

    def _trainer(self, index: int, start_step: int) -> SpeechLMMTrainer:
        stage = self.stages[index]
        settings, training = stage.settings, stage.settings.training
        args = training_arguments(
            settings,
            output_dir=str(self.folder.path),
            max_steps=stage.max_steps,
            world_size=stage.world_size,
            base=self.base,
        )
        utilisation = utilisation_of(
            self.config, settings, self.processor, adapters=self.model.lora_adapters, on_cpu=trains_on_cpu(training)
        )
        context = stage_context(self.config, self.stages, index, mode=self.mode, whole=self.whole)
        return SpeechLMMTrainer(
            model=self.model,
            args=args,
            processor=self.processor,
            batches=stage.batches(start_step, rank=self.ranks.rank),
            stage=replace(context, utilisation=utilisation),
            folder=self.folder,
            reporter=self.reporter,
            run_state=self.state,
            ranks=self.ranks,
            stop=self.stop,
        )
