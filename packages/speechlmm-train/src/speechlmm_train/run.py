"""Trains a model from a configuration: what `speechlmm-train run` and the demo do."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.checkpoint.fill import is_spread
from speechlmm_core.checkpoint.load import restore
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.objective import can_weigh
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.config import RunConfig
from speechlmm_train.parallel.arguments import parallel_arguments
from speechlmm_train.parallel.kernels import use_kernels
from speechlmm_train.parallel.loading import spread_while_loading
from speechlmm_train.parallel.quiet import quiet
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.parallel.release import release
from speechlmm_train.parallel.wrap import untrained
from speechlmm_train.parallel_names import Mode, mode_of
from speechlmm_train.preempted import PreemptedError
from speechlmm_train.preflight.budget import settle_budgets
from speechlmm_train.preflight.check import check_run
from speechlmm_train.speed.utilisation import utilisation_of
from speechlmm_train.trainer.arguments import training_arguments, trains_on_cpu
from speechlmm_train.trainer.best import RunState
from speechlmm_train.trainer.callbacks import Reporter, open_sinks
from speechlmm_train.trainer.checkpointing import take_up_sequence
from speechlmm_train.trainer.checkpoints import Checkpoint
from speechlmm_train.trainer.checks import check_stage, freeze_for
from speechlmm_train.trainer.curves import save_curves
from speechlmm_train.trainer.evaluation import EvaluationCallback
from speechlmm_train.trainer.final_save import save_final
from speechlmm_train.trainer.initial_model import build_model
from speechlmm_train.trainer.output_folder import REPORT, OutputFolder
from speechlmm_train.trainer.preemption import StopRequest
from speechlmm_train.trainer.stage_data import StageData, open_stages
from speechlmm_train.trainer.trainer import SpeechLMMTrainer, StageContext

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunReport:
    """What a run did."""

    model_path: Path
    steps: int
    """Optimiser steps that all stages have done."""
    seconds: float
    """Wall-clock time of this process; a resumed run counts only its own."""
    figures: dict[str, float] = field(default_factory=dict)
    """The last figures that were logged."""
    planned_steps: int = 0
    """Steps that were asked for; a stage may have ended early."""
    best: dict[str, Any] = field(default_factory=dict)
    """The best checkpoint of each stage, with the figure that it was chosen by."""
    guard: dict[str, Any] = field(default_factory=dict)
    """First and last figures of the last stage's guard set, and by which share each has worsened.

    The last ones are those of the best checkpoint where `model/` holds it, else of the last evaluation; `step` says
    of when.
    """
    guards: dict[str, Any] = field(default_factory=dict)
    """The same of each stage that has a guard set."""
    warnings: list[str] = field(default_factory=list)
    """What evaluations warned of."""
    mixture: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What each stage was trained on, by dataset and task."""


def run(
    config: RunConfig,
    *,
    plain: Mapping[str, Any] | None = None,
    base: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    beside: Sequence[str] = (),
) -> RunReport:
    """Trains a model, stage after stage, and saves it.

    Args:
        config: The run.
        plain: The composed configuration as it goes to `config.yaml`; `config` itself by default.
        base: Folder where relative paths of manifests start; the working directory by default.
        resume: Go on from the last whole checkpoint in the output folder, or start if there is none.
        overwrite: Remove an earlier run from the output folder.
        progress: Show a progress bar.
        beside: Names that may be in the output folder before the run and are not its own.

    Raises:
        ConfigError: The configuration does not fit together, or the output folder is not empty.
        DataError: Data are wrong; every fault is reported before anything is trained.
        CheckpointError: A checkpoint does not fit or cannot be saved.
        PreemptedError: The run was asked to stop (SIGTERM, SIGUSR1), and did so after a step, with a checkpoint.
    """
    started = time.perf_counter()
    written = dict(plain) if plain is not None else config.model_dump(mode="json")
    base = base or Path.cwd()
    settings = config.resolved_stages()
    for stage in settings:
        parallel_arguments(stage.training, world_size=Ranks.of_environment().world_size, base=base)
    mode = mode_of(config.training.parallel, Ranks.of_environment().world_size)
    ranks = Ranks.start(on_cpu=trains_on_cpu(config.training), alone=mode in ("zero", "fsdp2"))
    folder = OutputFolder(config.training.output_dir, beside=beside)
    ranks.on_main(lambda: folder.check(resume=resume, overwrite=overwrite))
    config, written = settle_budgets(config, written, folder=folder.path, base=base, ranks=ranks, resume=resume)
    if resume:
        ranks.on_main(lambda: folder.check_same(written))
    processor = SpeechLMMProcessor.from_config(config.model)
    stages = ranks.main_first(lambda: open_stages(config, processor, base=base, world_size=ranks.world_size))
    total = sum(stage.max_steps for stage in stages)
    checkpoint = None
    if resume:
        done = ranks.on_main(folder.report)
        if done is not None and done.get("planned_steps", done["steps"]) == total:
            if ranks.is_main:
                logger.warning("the run in %s is complete; nothing is left to train", folder.path)
            return RunReport(**{**done, "model_path": folder.model_path})
        checkpoint = ranks.on_main(folder.last_checkpoint)
        progress_made = checkpoint.progress if checkpoint else None
        ranks.on_main(lambda: folder.check_progress(progress_made, [stage.max_steps for stage in stages]))
        ranks.together(lambda: _take_up(checkpoint, stages, allow_changes=config.training.resume_changed))
    sources = (checkpoint, config.training.pretrained_checkpoint, config.model.text_decoder.pretrained)
    with spread_while_loading(config.training, loaded=any(source is not None for source in sources)):
        model = ranks.together(lambda: build_model(config, checkpoint))
    ranks.together(lambda: use_kernels(model, config.training))
    whole = ranks.together(lambda: _check_stages(model, stages, base=base))
    if config.training.preflight:
        going_on = checkpoint is not None
        ranks.together(lambda: check_run(config, stages, model, folder=folder.path, resume=going_on, rank=ranks.rank))
    done_steps = checkpoint.progress.total_step if checkpoint else 0
    state = ranks.on_main(lambda: RunState.read(checkpoint.path) if checkpoint else RunState())
    if checkpoint is not None:
        for stage in stages[checkpoint.progress.stage :]:
            rule, name = stage.evaluation.rule if stage.evaluation else None, stage.settings.name
            if rule is not None and state.forget_unlike(name, rule) and ranks.is_main:
                logger.warning("stage %r: the best is sought anew, for %s is another measure", name, rule.figure)

    def prepare_folder() -> None:
        # Nothing is written before everything has been checked: a run that is refused can be started again as it is.
        folder.prepare(overwrite=overwrite)
        folder.write_config(written)
        folder.cut_metrics(done_steps if checkpoint else -1)  # without a checkpoint, step 0 is evaluated again
        if checkpoint is not None:
            folder.point_to_best(list(state.best.values())[-1].checkpoint if state.best else None)

    ranks.on_main(prepare_folder)

    def open_reporter() -> Reporter:
        report_to = [str(name) for name in config.training.report_to]
        sinks = open_sinks(report_to, folder.path, first_step=done_steps, config=written) if ranks.is_main else []
        shown = progress and ranks.is_main
        opened = Reporter(sinks, total_steps=total, first_step=done_steps, progress=shown)
        opened.warnings += folder.warnings() if ranks.is_main else []
        return opened

    reporter = ranks.together(open_reporter)
    stop = StopRequest()
    try:
        run_ = _Run(
            config, stages, model, processor, folder, reporter, checkpoint, state, stop, ranks, mode, whole, base
        )
        with stop, logging_redirect_tqdm():  # warnings stand on lines of their own, not behind the progress bar
            for index in range(len(stages)):
                run_.stage(index)
    finally:
        reporter.close()
        if ranks.is_main:
            save_curves(folder.path)
    save_final(
        model,
        processor,
        folder.model_path,
        save=config.training.save,
        ranks=ranks,
        spread=any(is_spread(parameter) for parameter in model.parameters()),
    )
    guards: dict[str, Any] = {}
    for stage in stages:
        name, best = stage.settings.name, stage.settings.training.load_best_model_at_end
        if stage.evaluation and (found := state.worsened(name, stage.evaluation.known, of_best=best)):
            guards[name] = found
    report = RunReport(
        folder.model_path,
        total - sum(stage.max_steps - state.stopped.get(stage.settings.name, stage.max_steps) for stage in stages),
        time.perf_counter() - started,
        reporter.last,
        total,
        best={stage: asdict(best) for stage, best in state.best.items()},
        guard=guards.get(stages[-1].settings.name, {}),
        guards=guards,
        warnings=reporter.warnings,
        mixture={
            stage.settings.name: stage.mixture.trained_on(state.drawn.get(stage.settings.name, {})) for stage in stages
        },
    )
    told = json.dumps({**asdict(report), "model_path": "model"}, indent=2) + "\n"
    ranks.on_main(lambda: write_text(folder.path / REPORT, told))
    return report


@dataclass(frozen=True)
class _Run:
    """What all stages of a run share."""

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

    def stage(self, index: int) -> None:
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
        with quiet():
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
        weights = {name: objective.weight for name, objective in self.config.model.all_objectives.items()}
        context = StageContext(
            index=index,
            name=settings.name,
            first_total_step=sum(earlier.max_steps for earlier in self.stages[:index]),
            weights={**weights, **settings.objectives},
            lr_groups=training.lr_groups,
            own_lr_groups=settings.own_lr_groups,
            save=training.save,
            save_total_limit=training.save_total_limit,
            seed=training.seed,
            mixture=stage.mixture,
            mode=self.mode,
            whole=self.whole,
            inputs=frozenset(stage.spacers.numbers),
            max_grad_norm=training.max_grad_norm,
            watching=training,
            utilisation=utilisation_of(self.config, settings, self.processor, on_cpu=trains_on_cpu(training)),
        )
        return SpeechLMMTrainer(
            model=self.model,
            args=args,
            processor=self.processor,
            batches=stage.batches(start_step, rank=self.ranks.rank),
            stage=context,
            folder=self.folder,
            reporter=self.reporter,
            run_state=self.state,
            ranks=self.ranks,
            stop=self.stop,
        )


def _take_up(checkpoint: Checkpoint | None, stages: list[StageData], *, allow_changes: bool) -> None:
    """Finds a checkpoint's place in the batches of its stage.

    Raises:
        ConfigError: They would be others.
    """
    if checkpoint is not None:
        stage = stages[checkpoint.progress.stage]
        if checkpoint.progress.step < stage.max_steps:
            take_up_sequence(checkpoint, stage.plan, allow_changes=allow_changes)


def _check_stages(model: SpeechLMM, stages: list[StageData], *, base: Path) -> frozenset[str]:
    """Tries out what each stage asks for; gives the components that none of them trains.

    Raises:
        ConfigError: A stage does not fit the model, or its data give it nothing to learn from.
        MissingDependencyError: Figures are to go where nothing that is installed can take them.
    """
    recorded = set(model.ever_trainable)
    whole = set(model.components())
    for stage in stages:
        check_stage(model, stage.settings, max_steps=stage.max_steps, world_size=stage.world_size, base=base)
        whole &= untrained(model)
        if not stage.plan.frames.any():
            configured = model.model_config.all_objectives
            weights = {name: one.weight for name, one in configured.items()} | stage.settings.objectives
            learnt = [name for name, weight in weights.items() if can_weigh(weight)]
            if not any(set(configured[name].stages) <= {"text_decoder"} for name in learnt):
                raise ConfigError(
                    f"stage {stage.settings.name!r}: its data are text alone, and of the objectives with a weight "
                    f"({', '.join(learnt)}) none can learn from that"
                )
    model.ever_trainable = recorded
    return frozenset(whole)
