"""Trains a model from a configuration: what `speechlmm-train run` and the demo do."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.checkpoint.fill import is_spread
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.objective import can_weigh
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.config import RunConfig
from speechlmm_train.parallel.arguments import parallel_arguments
from speechlmm_train.parallel.kernels import use_kernels
from speechlmm_train.parallel.leaving import own_variables_kept
from speechlmm_train.parallel.loading import spread_while_loading
from speechlmm_train.parallel.quiet import quiet
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.parallel.wrap import untrained
from speechlmm_train.parallel_names import mode_of
from speechlmm_train.preflight.budget import settle_budgets
from speechlmm_train.preflight.check import check_run
from speechlmm_train.preflight.restore import forget_peak
from speechlmm_train.run_report import RunReport, report_of
from speechlmm_train.run_stages import RunStages
from speechlmm_train.trainer.arguments import trains_on_cpu
from speechlmm_train.trainer.best import RunState
from speechlmm_train.trainer.callbacks import Reporter, open_sinks
from speechlmm_train.trainer.checkpointing import take_up_sequence
from speechlmm_train.trainer.checkpoints import Checkpoint
from speechlmm_train.trainer.checks import check_stage
from speechlmm_train.trainer.curves import save_curves
from speechlmm_train.trainer.final_save import save_final
from speechlmm_train.trainer.going_on import check_going_on
from speechlmm_train.trainer.initial_model import build_model
from speechlmm_train.trainer.notes import note
from speechlmm_train.trainer.output_folder import REPORT, OutputFolder
from speechlmm_train.trainer.preemption import StopRequest
from speechlmm_train.trainer.stage_data import StageData, open_stages

logger = logging.getLogger(__name__)


@own_variables_kept()
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
        KeyboardInterrupt: Ctrl-C; its words say what was saved before.
    """
    folder = OutputFolder(config.training.output_dir, beside=beside)
    written = dict(plain) if plain is not None else config.model_dump(mode="json")
    try:
        return _run(
            config, folder, written, base=base or Path.cwd(), resume=resume, overwrite=overwrite, progress=progress
        )
    except KeyboardInterrupt as exc:
        raise KeyboardInterrupt(f"interrupted; {folder.remaining()}") from exc


def _run(
    config: RunConfig,
    folder: OutputFolder,
    written: dict[str, Any],
    *,
    base: Path,
    resume: bool,
    overwrite: bool,
    progress: bool,
) -> RunReport:
    started = time.perf_counter()
    for stage in config.resolved_stages():
        parallel_arguments(stage.training, world_size=Ranks.of_environment().world_size, base=base)
    mode = mode_of(config.training.parallel, Ranks.of_environment().world_size)
    ranks = Ranks.start(
        on_cpu=trains_on_cpu(config.training),
        alone=mode in ("zero", "fsdp2"),
        timeout_s=float(config.training.ddp_timeout),
    )
    ranks.on_main(lambda: folder.check(resume=resume, overwrite=overwrite))
    config, written = settle_budgets(config, written, folder=folder.path, base=base, ranks=ranks, resume=resume)
    if resume:
        ranks.on_main(lambda: folder.check_same(written))
    processor = SpeechLMMProcessor.from_config(config.model)
    stages = ranks.main_first(lambda: open_stages(config, processor, base=base, world_size=ranks.world_size))
    checkpoint = None
    if resume:
        if (done := _done(folder, stages, ranks, written)) is not None:
            return done
        checkpoint = _last_checkpoint(config, folder, stages, ranks)
        if ranks.is_main:
            note(_begins(checkpoint))
    model = _built(config, checkpoint, ranks)
    whole = ranks.together(lambda: _check_stages(model, stages, base=base))
    if config.training.preflight:
        going_on = checkpoint is not None
        check_run(config, stages, model, folder=folder.path, resume=going_on, ranks=ranks, whole=whole, base=base)
    state = _state(checkpoint, stages, ranks)
    ranks.on_main(lambda: _prepare(folder, written, checkpoint, state, overwrite=overwrite))
    reporter = ranks.together(
        lambda: _reporter(config, folder, written, stages, checkpoint, progress=progress, is_main=ranks.is_main)
    )
    stop = StopRequest()
    try:
        all_stages = RunStages(
            config, stages, model, processor, folder, reporter, checkpoint, state, stop, ranks, mode, whole, base
        )
        forget_peak()
        with stop, logging_redirect_tqdm():  # warnings stand on lines of their own, not behind the progress bar
            for index in range(len(stages)):
                all_stages.train(index)
    finally:
        reporter.close()
        if ranks.is_main:
            save_curves(folder.path)
    spread = any(is_spread(parameter) for parameter in model.parameters())
    with quiet():
        save_final(model, processor, folder.model_path, save=config.training.save, ranks=ranks, spread=spread)
    begun_at = checkpoint.progress if checkpoint else None
    report = report_of(stages, state, reporter, model_path=folder.model_path, started=started, begun_at=begun_at)
    told = json.dumps({**asdict(report), "model_path": "model"}, indent=2) + "\n"
    ranks.on_main(lambda: write_text(folder.path / REPORT, told))
    return report


def _begins(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return "there is no checkpoint to go on from: training begins anew"
    return f"goes on after step {checkpoint.progress.total_step}, from {checkpoint.path.name}"


def _done(folder: OutputFolder, stages: list[StageData], ranks: Ranks, written: dict[str, Any]) -> RunReport | None:
    """What the run did, if it has ended already.

    Raises:
        ConfigError: It ended, and another one is asked for.
    """
    done = ranks.on_main(folder.report)
    if done is None or done.get("planned_steps", done["steps"]) != sum(stage.max_steps for stage in stages):
        return None
    ranks.on_main(lambda: folder.check_results(written))
    if ranks.is_main:
        logger.warning("the run in %s is complete; nothing is left to train", folder.path)
    return RunReport(**{**done, "model_path": folder.model_path})


def _last_checkpoint(
    config: RunConfig, folder: OutputFolder, stages: list[StageData], ranks: Ranks
) -> Checkpoint | None:
    """The checkpoint to go on from, with its place in the batches found; None to begin.

    Raises:
        ConfigError: The stages, or their batches, would be others.
        CheckpointError: The optimiser would be another one, or no checkpoint is whole.
    """
    checkpoint = ranks.on_main(folder.last_checkpoint)
    settings, steps = [stage.settings for stage in stages], [stage.max_steps for stage in stages]
    ranks.on_main(lambda: check_going_on(folder, checkpoint, settings, steps))
    ranks.together(lambda: _take_up(checkpoint, stages, allow_changes=config.training.resume_changed))
    return checkpoint


def _built(config: RunConfig, checkpoint: Checkpoint | None, ranks: Ranks) -> SpeechLMM:
    """The model as training begins, or goes on."""
    sources = (checkpoint, config.training.pretrained_checkpoint, config.model.text_decoder.pretrained)
    with spread_while_loading(config.training, loaded=any(source is not None for source in sources)):
        model = ranks.together(lambda: build_model(config, checkpoint))
    ranks.together(lambda: use_kernels(model, config.training))
    return model


def _state(checkpoint: Checkpoint | None, stages: list[StageData], ranks: Ranks) -> RunState:
    """What the run remembers of its evaluations."""
    if checkpoint is None:
        return RunState()
    state = ranks.on_main(lambda: RunState.read(checkpoint.path))
    for stage in stages[checkpoint.progress.stage :]:
        rule, name = stage.evaluation.rule if stage.evaluation else None, stage.settings.name
        if rule is not None and state.forget_unlike(name, rule) and ranks.is_main:
            logger.warning("stage %r: the best is sought anew, for %s is another measure", name, rule.figure)
    return state


def _prepare(
    folder: OutputFolder, written: dict[str, Any], checkpoint: Checkpoint | None, state: RunState, *, overwrite: bool
) -> None:
    # Nothing is written before everything has been checked: a run that is refused can be started again as it is.
    folder.prepare(overwrite=overwrite)
    folder.write_config(written)
    if checkpoint is None:
        folder.cut_metrics(-1)  # step 0 is evaluated again
        return
    folder.set_aside_after(checkpoint)
    folder.cut_metrics(checkpoint.progress.total_step)
    folder.point_to_best(list(state.best.values())[-1].checkpoint if state.best else None)


def _reporter(
    config: RunConfig,
    folder: OutputFolder,
    written: dict[str, Any],
    stages: list[StageData],
    checkpoint: Checkpoint | None,
    *,
    progress: bool,
    is_main: bool,
) -> Reporter:
    """Where figures go: on the first rank alone, into files and services."""
    done = checkpoint.progress.total_step if checkpoint else 0
    first = done + 1 if checkpoint else 0  # before the first step of all, there may be an evaluation
    report_to = [str(name) for name in config.training.report_to]
    sinks = open_sinks(report_to, folder.path, first_step=first, config=written) if is_main else []
    total = sum(stage.max_steps for stage in stages)
    opened = Reporter(sinks, total_steps=total, first_step=done, progress=progress and is_main)
    opened.warnings += folder.warnings() if is_main else []
    return opened


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
