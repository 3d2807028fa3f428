"""A YAML file that names datasets: lists under ``train:`` and ``eval:``. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from speechlmm_core.data.spec.entries import dataset_config
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.interfaces.dataset import DatasetConfig

KEYS = ("train", "eval")


def read_spec_file(path: Path) -> dict[str, list[DatasetConfig]]:
    """The training and evaluation sets that a file names; relative paths in it start at its folder.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise DataError(f"data.data_config_path {str(path)!r} cannot be read: {' '.join(str(exc).split())}") from exc
    if not isinstance(content, dict) or not set(content) <= set(KEYS) or not content.get("train"):
        raise DataError(f"{path}: expected `train:` (and `eval:`) with lists of manifests or datasets")
    try:
        return {key: [dataset_config(_rooted(one, path.parent)) for one in _listed(content.get(key))] for key in KEYS}
    except ConfigError as exc:
        raise DataError(f"{path}: {exc}") from exc


def _listed(entries: Any) -> list[Any]:
    if entries is None:
        return []
    return entries if isinstance(entries, list) else [entries]


def _rooted(entry: Any, folder: Path) -> Any:
    if isinstance(entry, str):
        return str(folder / Path(entry).expanduser())
    if isinstance(entry, dict) and isinstance(entry.get("path"), str):
        return {**entry, "path": str(folder / Path(entry["path"]).expanduser())}
    return entry
