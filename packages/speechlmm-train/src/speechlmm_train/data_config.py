# pyright: strict
"""The `data:` section of a run, and what all sections have in common. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.data.spec.config import DatasetSpec, Destination
from speechlmm_core.data.spec.entries import parse_entry
from speechlmm_core.data.spec.entry_faults import SpecFaults
from speechlmm_core.data.spec.schema import ENTRY_REFERENCE
from speechlmm_core.interfaces.augmentation import AnyAugmentation, AugmentationConfig

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0)]
Mixing = Literal["random", "length", "alternating", "sequential"]


class Section(BaseModel):
    """A part of a run's configuration: no unknown keys, and no number that is none."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def _as_list(value: Any) -> Any:
    """Spells a single dataset as a list."""
    return [] if value is None else [value] if isinstance(value, str | dict) else value


def _entry(destination: Destination) -> BeforeValidator:
    """Makes the typed form of what stands in a list of datasets, for what the list is for."""

    def parse(value: Any) -> DatasetSpec:
        faults = SpecFaults()
        spec = parse_entry(value, "", faults, destination=destination)
        if spec is None:
            raise PydanticCustomError("dataset_entry", "{faults}", {"faults": "\n".join(faults.lines)})
        return spec

    return BeforeValidator(parse)


ENTRIES = {"type": "array", "items": {"x-registry": ENTRY_REFERENCE}}
TrainingSets = Annotated[
    list[Annotated[DatasetSpec, _entry("train")]], BeforeValidator(_as_list), WithJsonSchema(ENTRIES)
]
EvaluationSets = Annotated[
    list[Annotated[DatasetSpec, _entry("eval")]], BeforeValidator(_as_list), WithJsonSchema(ENTRIES)
]
GuardSets = Annotated[list[Annotated[DatasetSpec, _entry("guard")]], BeforeValidator(_as_list), WithJsonSchema(ENTRIES)]


class DataConfig(Section):
    """Where the examples come from."""

    train: TrainingSets = Field(default_factory=list[DatasetSpec])
    """Training sets: entries of a dataset specification, which are paths of JSONL manifests, or mappings with the
    `type:` of a reader or a `preset:`."""
    eval: EvaluationSets = Field(default_factory=list[DatasetSpec])
    """Evaluation sets, likewise."""
    guard: GuardSets = Field(default_factory=list[DatasetSpec])
    """Sets that are evaluated beside those of `eval`, to notice what gets worse; likewise."""
    data_config_path: str | None = None
    """A dataset specification in place of the three fields above: a path, or a name below `conf/datasets`."""
    index_dir: str | None = None
    """What `speechlmm-train prepare` wrote; by default what lies beside the specification, if anything does."""
    augment: list[AnyAugmentation] = Field(default_factory=list[AugmentationConfig])
    """What changes the audio while it is loaded for training, in this order (`{type: speed}`); never in evaluation."""
    min_duration_s: Rate = 0.0
    """Examples with less audio are left out of training."""
    max_duration_s: Annotated[float, Field(gt=0)] | None = None
    """Examples with more audio are left out of training."""
    oversized: Literal["error", "skip", "alone"] = "error"
    """What to do with an example that is longer than a budget: refuse it, leave it out (and say so), or give it a
    micro-batch of its own."""
    batch_window: Positive = 10_000
    """Examples among which lengths are matched when micro-batches are filled."""
    mixing: Mixing = "random"
    """How tasks and datasets come together. `random`: within each micro-batch; weights are shares of examples.
    `length`: likewise, with weights as shares of positions, and lengths matched over the whole epoch. `alternating`:
    all micro-batches of a step are of one task. `sequential`: one dataset after the other."""
    task_weights: dict[str, Rate] = Field(default_factory=dict[str, float])
    """Shares of the tasks (`{asr: 2, st: 1}`); 0 leaves one out. Without weights an epoch holds each example once."""
    dataset_weights: dict[str, Rate] = Field(default_factory=dict[str, float])
    """Shares of the datasets by name, of their tasks where these have weights; in place of the entries' `weight`."""
    repeat: bool = True
    """Whether what has too few examples for its weight comes more than once an epoch; otherwise the rest comes less."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.data_config_path and (self.train or self.eval or self.guard):
            raise PydanticCustomError("two_sources", "give either train/eval/guard or data_config_path, not both", {})
        if self.max_duration_s is not None and self.max_duration_s < self.min_duration_s:
            raise PydanticCustomError("durations", "max_duration_s is below min_duration_s: no example would be left")
        return self
