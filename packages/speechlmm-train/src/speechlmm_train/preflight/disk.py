"""Whether the disk has room for what a run will write."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from speechlmm_core.checkpoint.fill import full_shape
from speechlmm_core.errors import ConfigError
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.preflight.files import existing_parent
from speechlmm_train.preflight.sharding import FP32, state_bytes
from speechlmm_train.preflight.units import in_bytes
from speechlmm_train.trainer.stage_data import StageData


def check_disk(folder: Path, model: SpeechLMM, stages: Sequence[StageData], *, resume: bool) -> None:
    """Compares the size of the checkpoints that will lie in the output folder with the room that is left.

    Args:
        folder: The output folder.
        model: The model, which has recorded what is trained in any stage.
        stages: The stages.
        resume: Whether older checkpoints, which make room for new ones, lie there already.

    Raises:
        ConfigError: There is too little room.
    """
    training = stages[0].settings.training
    weights, states = checkpoint_bytes(model, stages)
    number = num_checkpoints(stages)
    if resume:
        number = min(number, 1)
    needed = number * (weights + states) + weights
    place = existing_parent(folder)
    free = shutil.disk_usage(place).free
    if needed <= free:
        return
    advice = "" if training.save == "trainable" else "training.save=trainable, "
    raise ConfigError(
        f"training.output_dir {str(folder)!r}: {number} checkpoints of {in_bytes(weights + states)} and the model need "
        f"{in_bytes(needed)}, and {in_bytes(free)} are free in {str(place)!r}; make room, or set {advice}a lower "
        f"training.save_total_limit (now {training.save_total_limit}) or another output_dir"
    )


def checkpoint_bytes(model: SpeechLMM, stages: Sequence[StageData]) -> tuple[int, int]:
    """Bytes of a checkpoint's weights, and of the optimiser's states beside them."""
    trained = sum(_numel(p) for name, p in model.named_parameters() if name in model.ever_trainable)
    training = stages[0].settings.training
    states = round(trained * state_bytes(training))
    if training.save == "trainable":
        return trained * FP32, states
    unique = {id(p): _numel(p) * p.element_size() for p in [*model.parameters(), *model.buffers()]}
    return sum(unique.values()), states


def _numel(tensor: Tensor) -> int:
    """Of the whole tensor: a checkpoint has all of what processes share."""
    return math.prod(full_shape(tensor))


def num_checkpoints(stages: Sequence[StageData]) -> int:
    """Checkpoints that lie in the folder at once: one more than are kept, for the new one is written first."""
    most = 0
    for stage in stages:
        training = stage.settings.training
        if training.save_steps:
            most += -(-stage.max_steps // training.save_steps)
    limit = stages[0].settings.training.save_total_limit
    best = sum(stage.settings.training.metric_for_best_model is not None for stage in stages)
    return min(most, limit + 1 if limit else most) + best
