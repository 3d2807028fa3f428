"""The typed configuration of a training run. Imports no torch.

What is not listed here but is a field of transformers' `TrainingArguments` may stand under ``training:`` too.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.config import RESERVED, ModelConfig
from speechlmm_core.interfaces.dataset import AnyDataset, DatasetConfig
from speechlmm_core.interfaces.objective import Schedule
from speechlmm_core.registry import nearest
from speechlmm_train.training_arguments import DECIDED_ELSEWHERE, training_argument_names

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0)]
Weight = Rate | Schedule
DEFAULT_TOKEN_BUDGET = 8192
"""Positions in a micro-batch where the configuration gives no size at all."""


def _as_datasets(value: Any) -> Any:
    """Spells a path as the `jsonl` dataset that it stands for, and a single set as a list."""
    if value is None:
        return []
    if isinstance(value, str | dict):
        return _as_datasets([value])
    if not isinstance(value, list):
        return value
    entries = cast("list[Any]", value)
    return [{"type": "jsonl", "path": entry} if isinstance(entry, str) else entry for entry in entries]


Datasets = Annotated[
    list[AnyDataset],
    BeforeValidator(_as_datasets),
    WithJsonSchema(
        {"type": "array", "items": {"anyOf": [{"type": "string"}, {"x-registry": "#/$defs/dataset"}]}},
    ),
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class DataConfig(_Section):
    """Where the examples come from."""

    train: Datasets = Field(default_factory=list[DatasetConfig])
    """Training sets: paths of JSONL manifests, or mappings with a `type:` that names a dataset reader."""
    eval: Datasets = Field(default_factory=list[DatasetConfig])
    """Evaluation sets, likewise."""
    data_config_path: str | None = None
    """A YAML file that holds `train:` and `eval:` in place of the two fields above."""
    min_duration_s: Rate = 0.0
    """Examples with less audio are left out of training."""
    max_duration_s: Annotated[float, Field(gt=0)] | None = None
    """Examples with more audio are left out of training."""
    oversized: Literal["error", "alone"] = "error"
    """What to do with an example that is longer than a budget: refuse it, or give it a micro-batch of its own."""
    batch_window: Positive = 10_000
    """Examples among which lengths are matched when micro-batches are filled."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.data_config_path and (self.train or self.eval):
            raise PydanticCustomError("two_sources", "give either train/eval or data_config_path, not both", {})
        if self.max_duration_s is not None and self.max_duration_s < self.min_duration_s:
            raise PydanticCustomError("durations", "max_duration_s is below min_duration_s: no example would be left")
        return self


class _Sizes(_Section):
    """How large a micro-batch is."""

    token_budget: Positive | None = None
    """Positions of the text decoder in a micro-batch, padding included."""
    frame_budget: Positive | None = None
    """Encoder output frames in a micro-batch, padding included."""
    per_device_train_batch_size: Positive | None = None
    """Examples in a micro-batch, in place of the budgets."""

    @model_validator(mode="after")
    def _one_way_to_size(self) -> _Sizes:
        if self.per_device_train_batch_size and (self.token_budget or self.frame_budget):
            raise PydanticCustomError(
                "batch_size", "give either per_device_train_batch_size or token_budget/frame_budget, not both", {}
            )
        return self


class TrainingConfig(_Sizes):
    """How the model is trained."""

    model_config = ConfigDict(extra="allow")

    output_dir: str
    """Folder that everything is written to."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of weights, dropout, order and prompts."""
    max_steps: Positive | None = None
    """Optimiser steps."""
    num_epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the data, in place of `max_steps`."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate."""
    lr_scheduler_type: str = "cosine"
    """Shape of the learning rate over the steps."""
    warmup_steps: Rate = 0
    """Steps until the peak; below 1, a fraction of all steps."""
    weight_decay: Rate = 0.0
    """Weight decay, on matrices only."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of AdamW's second moment."""
    max_grad_norm: Rate = 1.0
    """Gradients are clipped to this norm; 0 for no clipping."""
    micro_batches_per_step: Positive = 1
    """Micro-batches in the global batch of a step, over all processes."""
    freeze_modules: list[str] = Field(default_factory=list[str])
    """Parts of the model that are not trained: module names (`audio_encoder`) or globs (`*_encoder`)."""
    lr_groups: dict[str, float] = Field(default_factory=dict[str, float])
    """Learning rates of parts of the model by module name."""
    packed: bool = True
    """Whether the examples of a micro-batch share one row; otherwise they are padded."""
    bf16: bool | Literal["auto"] = False
    """Mixed precision; `auto` is on where a GPU supports it."""
    gradient_checkpointing: bool = False
    """Trades computation for memory."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Data worker processes."""
    save: Literal["full", "trainable"] = "full"
    """Whether checkpoints hold every weight, or those that were trained and references to the others."""
    save_steps: Positive | None = 500
    """Steps between checkpoints; null for none before the end."""
    save_total_limit: Positive | None = 3
    """Checkpoints that are kept."""
    logging_steps: Positive = 10
    """Steps between two log lines."""
    eval_steps: Positive | None = None
    """Steps between two evaluations by generation; null for none."""
    eval_samples: Positive = 32
    """Examples of `data.eval` that such an evaluation generates from; always the same ones."""
    eval_max_new_tokens: Positive = 128
    """Tokens of an answer at most, in such an evaluation."""
    init_from: str | None = None
    """Path of a trained model of the same components, whose weights training starts from."""
    report_to: list[Literal["tensorboard", "wandb"]] = Field(default_factory=lambda: ["tensorboard"])
    """Where figures go, beside `metrics.jsonl`."""

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if value in (None, "none"):
            return []
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> TrainingConfig:
        if self.max_steps and self.num_epochs:
            raise PydanticCustomError("steps", "give either max_steps or num_epochs, not both", {})
        return self

    @model_validator(mode="after")
    def _known_extras(self) -> TrainingConfig:
        for key in self.extras:
            if key in DECIDED_ELSEWHERE:
                raise PydanticCustomError(
                    "decided_elsewhere",
                    "{key} cannot be set: {instead}",
                    {"key": repr(key), "instead": DECIDED_ELSEWHERE[key]},
                )
            known = training_argument_names() - DECIDED_ELSEWHERE.keys()
            if key not in known:
                hint = nearest(key, [*type(self).model_fields, *sorted(known)])
                raise PydanticCustomError("unknown_key", "unknown key {key}{hint}", {"key": repr(key), "hint": hint})
        return self

    @property
    def extras(self) -> dict[str, Any]:
        """Further fields of `TrainingArguments`."""
        return dict(self.__pydantic_extra__ or {})


class StageConfig(_Sizes):
    """One stage of a training: what differs from `training` while it lasts; null leaves a value to `training`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    """Name of the stage, for logs."""
    max_steps: Positive
    """Optimiser steps of the stage."""
    data: DataConfig | None = None
    """The stage's own data; null for that of the run."""
    trainable_modules: list[str] | None = None
    """The only parts that are trained, in place of `freeze_modules`."""
    freeze_modules: list[str] | None = None
    """Parts of the model that are not trained, by module name or glob."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate."""
    lr_scheduler_type: str | None = None
    """Shape of the learning rate over the stage's steps (`linear`, `cosine`, `constant_with_warmup`, …)."""
    warmup_steps: Rate | None = None
    """Steps until the peak; below 1, a fraction of the stage's steps."""
    lr_groups: dict[str, float] | None = None
    """Learning rates of parts of the model by module name (`audio_encoder: 1e-4`)."""
    weight_decay: Rate | None = None
    """Weight decay, on matrices only."""
    max_grad_norm: Rate | None = None
    """Gradients are clipped to this norm; 0 for no clipping."""
    micro_batches_per_step: Positive | None = None
    """Micro-batches in the global batch of a step, over all processes."""
    objectives: dict[str, Weight] = Field(default_factory=dict[str, Weight])
    """Weights of training objectives for this stage; progress in a schedule is that of the stage."""

    @model_validator(mode="after")
    def _one_way_to_freeze(self) -> StageConfig:
        if self.freeze_modules is not None and self.trainable_modules is not None:
            raise PydanticCustomError("freezing", "give either freeze_modules or trainable_modules, not both", {})
        return self


OVERRIDABLE = sorted({*TrainingConfig.model_fields} & {*StageConfig.model_fields} - {"max_steps"})
"""What a stage may set for itself."""


class RunConfig(_Section):
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
        faults = [*self._step_faults(), *self._name_faults()]
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
        if self.stages and (self.training.max_steps or self.training.num_epochs):
            faults.append("training.max_steps: with stages, give each stage its max_steps and leave this out")
        if not self.stages and not (self.training.max_steps or self.training.num_epochs):
            faults.append("training.max_steps: missing (or give training.num_epochs)")
        for place, data in [("data", self.data), *((f"stage {s.name!r}", s.data) for s in self.stages if s.data)]:
            needed = place != "data" or not self.stages or any(stage.data is None for stage in self.stages)
            if needed and not (data.train or data.data_config_path):
                faults.append(f"{place}: no training data; give data.train=[manifest.jsonl]")
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
        single = StageConfig(name="train", max_steps=self.training.max_steps or 1)
        return [ResolvedStage.of(self, stage) for stage in (self.stages or [single])]


class ResolvedStage(_Section):
    """A stage as it is run."""

    name: str
    max_steps: int | None
    data: DataConfig
    training: TrainingConfig
    trainable_modules: list[str] | None
    objectives: dict[str, Weight]

    @classmethod
    def of(cls, run: RunConfig, stage: StageConfig) -> ResolvedStage:
        """Lays a stage over the run's `training`."""
        own = {key: getattr(stage, key) for key in OVERRIDABLE if getattr(stage, key) is not None}
        base = run.training
        if not (base.token_budget or base.frame_budget or base.per_device_train_batch_size):
            base = base.model_copy(update={"token_budget": DEFAULT_TOKEN_BUDGET})
        if "per_device_train_batch_size" in own:
            base = base.model_copy(update={"token_budget": None, "frame_budget": None})
        elif "token_budget" in own or "frame_budget" in own:
            base = base.model_copy(update={"per_device_train_batch_size": None})
        return cls(
            name=stage.name,
            max_steps=None if not run.stages and run.training.num_epochs else stage.max_steps,
            data=stage.data or run.data,
            training=base.model_copy(update=own),
            trainable_modules=stage.trainable_modules,
            objectives=stage.objectives,
        )
