"""What stands in a file of a run's configuration or a training setting: any part of it. Only its schema is used."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from speechlmm_core.config import ModelConfig
from speechlmm_train.config import RunConfig
from speechlmm_train.training_config import TrainingConfig


class TrainingSection(TrainingConfig):
    """How the model is trained."""

    output_dir: str | None = None
    """Folder that everything is written to; by default named after the run, below `$CHECKPOINTS_HOME`."""


class RunFile(RunConfig):
    """A file of a run's configuration, or a training setting."""

    defaults: list[str | dict[str, Any]] = Field(default_factory=list[str | dict[str, Any]])
    """What the file is laid over: `pretrain`, `override /model/audio_encoder: whisper`, `_self_`."""
    adjustments: list[str] | str = Field(default_factory=list[str])
    """Adjustments that apply unless the command line names others."""
    model: ModelConfig | None = None
    """The model's components."""
    training: TrainingSection = Field(default_factory=TrainingSection)
    """How the model is trained."""
