"""Which datasets a run reads: the entries under `data.train` and `data.eval`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ConcatExamples
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.jsonl.config import JsonlDatasetConfig
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.interfaces.dataset import DatasetConfig, datasets

Entry = str | Path | Mapping[str, Any] | DatasetConfig


def dataset_config(entry: Entry) -> DatasetConfig:
    """The configuration behind an entry: a path is a JSONL manifest, a mapping names its `type`.

    Raises:
        ConfigError: The entry is neither, or its type is unknown.
    """
    if isinstance(entry, (str, Path)):
        return JsonlDatasetConfig(path=str(entry))
    try:
        return datasets.validate(dict(entry) if isinstance(entry, Mapping) else entry)
    except (PydanticCustomError, ValidationError) as exc:
        raise ConfigError(f"dataset {entry!r}: {exc}") from exc


def open_datasets(entries: Sequence[Entry], base: Path) -> ConcatExamples:
    """Opens datasets, one after the other, as one sequence.

    Args:
        entries: Paths of JSONL manifests, or mappings with a `type`.
        base: Folder where relative paths start.

    Raises:
        ConfigError: There are no entries, or one is not a dataset.
        DataError: Data are wrong; the faults of all datasets are reported together.
    """
    if not entries:
        raise ConfigError("no dataset is named; expected a list of manifests such as [train.jsonl]")
    faults = Faults()
    parts: list[Sequence[Example]] = []
    for config in [dataset_config(entry) for entry in entries]:
        try:
            parts.append(config.read(base))
        except DataError as exc:
            faults.extend(exc)
    faults.raise_if_any()
    return ConcatExamples(parts)
