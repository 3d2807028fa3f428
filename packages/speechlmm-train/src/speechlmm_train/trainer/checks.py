"""Tries out what a stage asks for, on the model itself or on one without memory, before anything is trained."""

from __future__ import annotations

from speechlmm_core.errors import ConfigError
from speechlmm_core.model.freezing import freeze, set_trainable
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.stage_config import ResolvedStage
from speechlmm_train.trainer.arguments import training_arguments
from speechlmm_train.trainer.callbacks import require_sinks
from speechlmm_train.trainer.groups import parameter_groups


def freeze_for(model: SpeechLMM, stage: ResolvedStage) -> None:
    """Makes trainable what a stage trains.

    Raises:
        ConfigError: A name matches no module.
    """
    if stage.trainable_modules is not None:
        set_trainable(model, stage.trainable_modules)
    else:
        freeze(model, stage.training.freeze_modules)


def check_stage(model: SpeechLMM, stage: ResolvedStage, *, max_steps: int, world_size: int) -> None:
    """Checks a stage against the model; leaves the model as the stage would train it.

    Args:
        model: The model; it may be on the meta device.
        stage: The stage.
        max_steps: Its steps.
        world_size: Number of processes.

    Raises:
        ConfigError: A name matches no module, nothing would be trained, or a training argument is wrong.
        MissingDependencyError: Figures are to go where nothing that is installed can take them.
    """
    freeze_for(model, stage)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"stage {stage.name!r} trains nothing; every part of the model is frozen")
    try:
        parameter_groups(model, stage.training.lr_groups, strict=stage.own_lr_groups)
    except ConfigError as exc:
        raise ConfigError(f"stage {stage.name!r}: {exc}") from exc
    training_arguments(stage, output_dir=stage.training.output_dir, max_steps=max_steps, world_size=world_size)
    require_sinks(stage.training.report_to)
