"""The typed configuration of a training run. Imports no torch."""

from __future__ import annotations

from fnmatch import fnmatchcase

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.config import RESERVED, ModelConfig
from speechlmm_core.interfaces.objective import can_weigh
from speechlmm_core.registry import nearest
from speechlmm_train.data_config import DataConfig, Section
from speechlmm_train.lora_checks import adapter_faults, quantisation_faults
from speechlmm_train.stage_config import ResolvedStage, StageConfig, lay_over, resolve
from speechlmm_train.training_config import TrainingConfig

WORTH_BF16 = 512
"""Width of a language model from which bf16 is faster on a CPU with AMX."""
_RATES = {"lr_min", "learning_rate", "lr_scheduler_type", "num_steps_between_each_restart"}


class RunConfig(Section):
    """A training run: the model, its data, how it is trained, and its stages."""

    model: ModelConfig
    """The model's components."""
    data: DataConfig = Field(default_factory=DataConfig)
    """The data."""
    training: TrainingConfig
    """How the model is trained."""
    stages: list[StageConfig] = Field(default_factory=list[StageConfig])
    """Stages that follow one another on the same weights; empty for a single one."""

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        checks = (self._step_faults, self._rate_faults, self._data_faults, self._name_faults, self._weight_faults)
        faults = [fault for check in checks for fault in check()]
        if faults:
            raise PydanticCustomError("run", "{faults}", {"faults": "\n".join(faults)})
        return self

    @property
    def components(self) -> list[str]:
        """Names of the model's parts, as `freeze_modules` and `lr_groups` take them."""
        towers = [f"{name}_{part}" for name in self.model.inputs for part in ("encoder", "adapter")]
        own = [name for name in RESERVED if name != "objectives" and getattr(self.model, name, None) is not None]
        return [*towers, *own, "objectives"]

    def _step_faults(self) -> list[str]:
        faults: list[str] = []
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            faults.append(f"stages: two stages have one name: {', '.join(names)}")
        for stage in self.stages:
            figure = stage.metric_for_best_model or self.training.metric_for_best_model
            if figure and not (stage.eval_steps or self.training.eval_steps):
                faults.append(f"stage {stage.name!r}: metric_for_best_model needs evaluations: set eval_steps")
            if stage.early_stopping_patience and not figure:
                faults.append(f"stage {stage.name!r}: early_stopping_patience needs metric_for_best_model")
        if self.stages and (self.training.max_steps or self.training.num_epochs):
            faults.append("training.max_steps: with stages, give each stage its max_steps and leave this out")
        if not self.stages and not (self.training.max_steps or self.training.num_epochs):
            faults.append("training.max_steps: missing (or give training.num_epochs)")
        return faults

    def _rate_faults(self) -> list[str]:
        faults: list[str] = []
        for stage in self.stages or [None]:
            place = f"stage {stage.name!r} " if stage else "training."
            own = stage.model_dump(exclude_none=True, include=_RATES) if stage else {}
            laid = self.training.model_copy(update=own)
            rate, shape = laid.learning_rate, laid.lr_scheduler_type
            if laid.lr_min is not None and laid.lr_min > rate:
                faults.append(f"{place}lr_min: got {laid.lr_min:g}; expected at most the learning_rate, {rate:g}")
            if laid.restarts and shape != "cosine":
                faults.append(f"{place}lr_scheduler_type: got {shape!r}; lr_min and restarts need 'cosine'")
        return faults

    def _data_faults(self) -> list[str]:
        faults: list[str] = []
        laid: list[DataConfig] = []
        for stage in self.stages or [None]:
            place = f"stage {stage.name!r}" if stage and stage.data else "data"
            try:
                data = lay_over(self.data, stage.data if stage else None)
            except ValidationError as exc:
                faults.extend(f"{place}: {error['msg']}" for error in exc.errors())
                continue
            laid.append(data)
            fault = f"{place}: no training data; give data.train=[manifest.jsonl]"
            if not (data.train or data.data_config_path) and fault not in faults:
                faults.append(fault)
        if self.training.eval_steps and not any(data.eval or data.guard or data.data_config_path for data in laid):
            faults.append("training.eval_steps: there is nothing to evaluate on; give data.eval=[manifest.jsonl]")
        return faults

    def _weight_faults(self) -> list[str]:
        common = {name: objective.weight for name, objective in self.model.all_objectives.items()}
        faults: list[str] = []
        for stage in self.stages or [None]:
            weights = {**common, **(stage.objectives if stage else {})}
            if not any(can_weigh(weight) for weight in weights.values()):
                place = f"stage {stage.name!r}" if stage else "model.objectives"
                faults.append(f"{place}: the weight of every objective is zero; nothing would be learnt")
        return faults

    def _name_faults(self) -> list[str]:
        faults: list[str] = []
        parts, losses = self.components, list(self.model.all_objectives)

        def check(place: str, names: list[str]) -> None:
            for name in names:
                if not any(fnmatchcase(part, name.split(".")[0]) for part in parts):
                    hint = nearest(name, parts)
                    faults.append(f"{place}: the model has no part {name!r}{hint} (parts: {', '.join(parts)})")

        check("training.freeze_modules", self.training.freeze_modules)
        check("training.lr_groups", list(self.training.lr_groups))
        faults += [*adapter_faults(self.training, parts), *quantisation_faults(self.training, self.model)]
        for stage in self.stages:
            place = f"stage {stage.name!r}"
            check(f"{place} freeze_modules", stage.freeze_modules or [])
            check(f"{place} trainable_modules", stage.trainable_modules or [])
            check(f"{place} lr_groups", list(stage.lr_groups or {}))
            for name in stage.objectives:
                if name not in losses:
                    hint = nearest(name, losses)
                    faults.append(f"{place}: the model has no objective {name!r}{hint} (has: {', '.join(losses)})")
        return faults

    def resolved_stages(self) -> list[ResolvedStage]:
        """The stages with everything that they leave to `training` filled in."""
        training = self.training
        if training.bf16 == "auto" and self.model.text_decoder.hidden_size < WORTH_BF16:
            training = training.model_copy(update={"bf16": "gpu"})
        if training.extras.get("fp16"):
            training = training.model_copy(update={"bf16": False})
        single = StageConfig(name="train", max_steps=self.training.max_steps or 1)
        return [
            resolve(stage, data=self.data, training=training, single=not self.stages)
            for stage in (self.stages or [single])
        ]
