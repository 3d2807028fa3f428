"""Tries out what a stage asks for, on the model itself or on one without memory, before anything is trained."""

from __future__ import annotations

import logging
from pathlib import Path

from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.modules import Encoder
from speechlmm_core.model.freezing import freeze, set_trainable
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.optimizer_state.kinds import check_optimizer
from speechlmm_train.parallel_names import mode_of
from speechlmm_train.stage_config import ResolvedStage
from speechlmm_train.trainer.arguments import training_arguments
from speechlmm_train.trainer.callbacks import require_sinks
from speechlmm_train.trainer.groups import parameter_groups

logger = logging.getLogger(__name__)


def freeze_for(model: SpeechLMM, stage: ResolvedStage) -> None:
    """Makes trainable what a stage trains.

    Raises:
        ConfigError: A name matches no module.
    """
    if stage.trainable_modules is not None:
        set_trainable(model, stage.trainable_modules)
    else:
        freeze(model, stage.training.freeze_modules)


def check_stage(
    model: SpeechLMM,
    stage: ResolvedStage,
    *,
    max_steps: int,
    world_size: int,
    base: Path | None = None,
    planned: bool = False,
) -> None:
    """Checks a stage against the model; leaves the model as the stage would train it.

    Args:
        model: The model; it may be on the meta device.
        stage: The stage.
        max_steps: Its steps.
        world_size: Number of processes.
        base: Folder where relative paths start.
        planned: Whether nothing is to be trained now, so that no processes have met.

    Raises:
        ConfigError: A name matches no module, nothing would be trained, or a training argument is wrong.
        MissingDependencyError: Figures are to go where nothing that is installed can take them.
    """
    freeze_for(model, stage)
    _warn_of_the_untrained(model, stage)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        kept = ", ".join(sorted(model.frozen_adapters))
        way = f"; name the adapter that is to be trained in training.lora_adapters (there: {kept})" if kept else ""
        raise ConfigError(f"stage {stage.name!r} trains nothing; every part of the model is frozen{way}")
    try:
        parameter_groups(model, stage.training.lr_groups, strict=stage.own_lr_groups)
    except ConfigError as exc:
        raise ConfigError(f"stage {stage.name!r}: {exc}") from exc
    args = training_arguments(
        stage,
        output_dir=stage.training.output_dir,
        max_steps=max_steps,
        world_size=world_size,
        base=base,
        planned=planned,
    )
    mode = mode_of(stage.training.parallel, world_size)
    check_optimizer(str(getattr(args.optim, "value", args.optim)), mode, saves=stage.training.save_steps is not None)
    require_sinks(stage.training.report_to)


def _warn_of_the_untrained(model: SpeechLMM, stage: ResolvedStage) -> None:
    """Says where what an encoder has beside its network is frozen before anything has trained it.

    No base checkpoint holds these parameters: the weights of `layer: weighted` would stay as they are made.
    """
    if stage.training.pretrained_checkpoint is not None:
        return
    for name, component in model.components().items():
        if not isinstance(component, Encoder):
            continue
        beside = {f"{name}.{key}": value for key, value in component.named_parameters() if not key.startswith("model.")}
        still = [key for key, value in beside.items() if not value.requires_grad and key not in model.ever_trainable]
        if still:
            logger.warning(
                "stage %r freezes %s, which nothing has trained; freeze '%s.model' in the place of '%s' to train them",
                stage.name,
                ", ".join(still),
                name,
                name,
            )
