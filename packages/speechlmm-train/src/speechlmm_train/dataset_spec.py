"""Reads the YAML file behind `data.data_config_path`: lists of datasets under ``train:`` and ``eval:``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from speechlmm_core.errors import DataError
from speechlmm_train.data_config import DataConfig


def opened(data: DataConfig, base: Path) -> DataConfig:
    """The configuration with the file behind its `data_config_path` read; relative paths start at ``base``.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    if data.data_config_path is None:
        return data
    train, evaluation = read_dataset_spec(base / Path(data.data_config_path).expanduser())
    return data.model_copy(update={"train": train, "eval": evaluation, "data_config_path": None})


def read_dataset_spec(path: Path) -> tuple[list[Any], list[Any]]:
    """The training and evaluation sets that a file names; relative paths in it start at its folder.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise DataError(f"data.data_config_path {str(path)!r} cannot be read: {' '.join(str(exc).split())}") from exc
    if not isinstance(content, dict) or not set(content) <= {"train", "eval"} or not content.get("train"):
        raise DataError(f"{path}: expected `train:` (and `eval:`) with lists of manifests or datasets")
    rooted = {key: [_rooted(entry, path.parent) for entry in _listed(entries)] for key, entries in content.items()}
    try:
        data = DataConfig.model_validate(rooted)
    except ValidationError as exc:
        first = exc.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from exc
    return list(data.train), list(data.eval)


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
