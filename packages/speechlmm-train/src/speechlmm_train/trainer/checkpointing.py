"""Writes a training's checkpoints: whole or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from speechlmm_core.checkpoint.atomic import atomic_folder
from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.trainer.guarded_save import guarded_save
from speechlmm_train.trainer.output_folder import PROGRESS, Progress

if TYPE_CHECKING:
    from speechlmm_train.trainer.trainer import SpeechLMMTrainer


def write_checkpoint(trainer: SpeechLMMTrainer) -> None:
    """Writes `checkpoint-N/` of the steps done so far, and removes the oldest ones beyond the limit.

    Raises:
        CheckpointError: It cannot be written; older ones stay.
    """
    if not trainer.args.should_save:
        return
    target = trainer.folder.path / f"checkpoint-{trainer.total_step}"
    with guarded_save(target), atomic_folder(target) as temporary:
        assert isinstance(trainer.model, SpeechLMM)
        save_model(trainer.model, trainer.processor, temporary, save=trainer.stage.save)
        trainer._save_optimizer_and_scheduler(str(temporary))
        trainer._save_scaler(str(temporary))
        trainer.state.save_to_json(str(temporary / "trainer_state.json"))
        step = trainer.state.global_step
        progress = Progress(trainer.stage.index, trainer.stage.name, step, trainer.total_step)
        trainer.run_state.write(temporary)
        (temporary / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
    best = trainer.run_state.best.get(trainer.stage.name)
    if best is not None and best.checkpoint == target.name:
        trainer.folder.point_to_best(target.name)
    trainer.folder.rotate(trainer.stage.save_total_limit, keep=trainer.run_state.kept)
