"""Writes a training's checkpoints, whole or not at all, and takes a training up again from one.

All processes take part: what is spread over them is gathered one tensor at a time, and the first writes.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.checkpoint.atomic import atomic_folder
from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.errors import CheckpointError, OutOfStepError
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.batching.plan import BatchPlan
from speechlmm_train.batching.sequence import changes, sequence_of
from speechlmm_train.optimizer_state.folder import read_optimizer, states_of, write_optimizer
from speechlmm_train.optimizer_state.loss_scale import loss_scale_of
from speechlmm_train.parallel.gather import gather
from speechlmm_train.trainer.checkpoints import Checkpoint, Progress
from speechlmm_train.trainer.going_on import SEQUENCE, read_sequence, refuse_batches
from speechlmm_train.trainer.guarded_save import guarded_save
from speechlmm_train.trainer.manifest import write_manifest

if TYPE_CHECKING:
    from speechlmm_train.trainer.trainer import SpeechLMMTrainer

logger = logging.getLogger(__name__)


def write_checkpoint(trainer: SpeechLMMTrainer) -> None:
    """Writes `checkpoint-N/` of the steps done so far, and removes the oldest ones beyond the limit.

    Every process has to call it.

    Raises:
        CheckpointError: It cannot be written; older ones stay.
    """
    target = trainer.folder.path / f"checkpoint-{trainer.total_step}"
    trainer.ranks.together(lambda: _write(trainer, target))
    if not trainer.ranks.is_main:
        return
    best = trainer.run_state.best.get(trainer.stage.name)
    if best is not None and best.checkpoint == target.name:
        trainer.folder.point_to_best(target.name)
    trainer.folder.rotate(trainer.stage.save_total_limit, keep=trainer.run_state.kept)


def _write(trainer: SpeechLMMTrainer, target: Path) -> None:
    if not trainer.ranks.is_main:
        _gather_and_write(trainer, None)
        return
    taken_part = False
    try:
        with guarded_save(target), atomic_folder(target) as temporary:
            taken_part = True
            _gather_and_write(trainer, temporary)
            trainer.state.save_to_json(str(temporary / "trainer_state.json"))
            step = trainer.state.global_step
            Progress(trainer.stage.index, trainer.stage.name, step, trainer.total_step).write(temporary)
            if trainer.stage.mixture is not None:
                write_sequence(temporary, trainer.stage.mixture.plan, step)
            trainer.run_state.write(temporary)
            write_manifest(temporary)
    except CheckpointError:
        if not taken_part:  # the other processes would wait for this one
            _gather_and_write(trainer, None)
        raise


def _gather_and_write(trainer: SpeechLMMTrainer, folder: Path | None) -> None:
    """What all processes do together; the one that has a folder writes."""
    model = trainer.model
    assert isinstance(model, SpeechLMM)
    fault: Exception | None = None
    try:
        save_model(model, trainer.processor, folder, save=trainer.stage.save, gather=gather)
    except OutOfStepError:
        raise
    except Exception as exc:
        fault = exc
    scale = _loss_scale(trainer)
    states = states_of(trainer.optimizer, model)
    later = write_optimizer(
        folder if fault is None else None,
        states,
        scheduler=trainer.lr_scheduler,
        scaler=None if scale is None else scale.state_dict(),
    )
    if (fault := fault or later) is not None:
        raise fault


def read_training_state(trainer: SpeechLMMTrainer, folder: Path) -> None:
    """Takes over the optimiser's state, the schedule's place and the loss scale from a checkpoint.

    Every process has to call it. The weights are there already: the model was built with them.

    Raises:
        CheckpointError: The checkpoint is damaged, or another optimiser's.
    """
    model = trainer.model
    assert isinstance(model, SpeechLMM)
    states = states_of(trainer.optimizer, model)
    scale = _loss_scale(trainer)
    changed = trainer.ranks.together(
        lambda: read_optimizer(folder, states, scheduler=trainer.lr_scheduler, scaler=scale)
    )
    if changed and trainer.ranks.is_main:
        logger.warning("--resume: %s; the state of the optimiser is kept", ", ".join(changed))


def _loss_scale(trainer: SpeechLMMTrainer) -> Any:
    """What scales the loss of fp16, where it is used."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    return scaler if scaler is not None else loss_scale_of(trainer.optimizer)


def write_sequence(folder: Path, plan: BatchPlan, step: int) -> None:
    """Notes what decides a plan's batches, and where a step lies in them."""
    content = {"decided_by": sequence_of(plan), "position": plan.position(step)}
    (folder / SEQUENCE).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def take_up_sequence(checkpoint: Checkpoint, plan: BatchPlan, *, allow_changes: bool) -> None:
    """Finds the checkpoint's place in a plan, which has to be the one that it was trained by.

    Args:
        checkpoint: The checkpoint.
        plan: The plan of its stage, as it is now.
        allow_changes: Whether other batches than those of the run so far may follow.

    Raises:
        ConfigError: The plan is another one, and that is not allowed; names what differs.
        CheckpointError: The checkpoint does not say.
    """
    before, position = read_sequence(checkpoint)
    changed = changes(before, sequence_of(plan))
    if not changed:
        plan.go_to(position)
        return
    if not allow_changes:
        refuse_batches(checkpoint, changed)
    logger.warning(
        "--resume: stage %r goes on from step %d of another sequence of batches (%s); examples may come again, or not "
        "at all in this pass",
        checkpoint.progress.stage_name,
        checkpoint.progress.step,
        "; ".join(changed),
    )
