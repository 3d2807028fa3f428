"""The model that a training starts from."""

from __future__ import annotations

from pathlib import Path

from speechlmm_core.checkpoint.load import resolve_model_path, restore
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.config import RunConfig
from speechlmm_train.trainer.arguments import can_flash
from speechlmm_train.trainer.output_folder import Checkpoint
from speechlmm_train.trainer.trainer import seed_step

WEIGHTS_STAGE = 2**31
"""Stands for the stage number where the seed of the initial weights is drawn."""


def build_model(config: RunConfig, checkpoint: Checkpoint | None) -> SpeechLMM:
    """The model at the start of training: new weights, base checkpoints, `pretrained_checkpoint`, or the checkpoint's.

    Raises:
        CheckpointError: A checkpoint is missing or does not fit.
    """
    seed_step(config.training.seed, WEIGHTS_STAGE, 0, 0)
    source: Path | None = checkpoint.path if checkpoint else None
    if source is None and config.training.pretrained_checkpoint is not None:
        source = resolve_model_path(config.training.pretrained_checkpoint)
    model = SpeechLMM.from_model_config(
        config.model, load_base_weights=source is None, flash_attention=can_flash(config.training)
    )
    if source is not None:
        restore(model, source)
    return model
