# pyright: strict
"""The `data:` section of a run, and what all sections have in common. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.interfaces.dataset import AnyDataset, DatasetConfig

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A part of a run's configuration: no unknown keys, and no number that is none."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


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


class DataConfig(Section):
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
