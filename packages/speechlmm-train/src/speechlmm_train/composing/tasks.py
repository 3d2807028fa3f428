"""Whether the weights of tasks cover the tasks that are trained on, as far as the configuration tells them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from speechlmm_core.data.spec.config import DatasetSpec
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.find import find_spec
from speechlmm_core.data.spec.partition_names import told_destination
from speechlmm_core.errors import DataError
from speechlmm_core.registry import nearest
from speechlmm_train.config import RunConfig
from speechlmm_train.data_config import DataConfig

_FIELD = "data.task_weights"


def uncovered_tasks(config: RunConfig, config_dir: Path | None) -> list[str]:
    """What is wrong with the weights of tasks, a line for each stage.

    Manifests whose lines name their tasks are not read; what such weights lack is told when the data are opened.

    Args:
        config: The run.
        config_dir: The user's folder, where specifications may lie.
    """
    found: dict[str, None] = {}
    for stage in config.resolved_stages():
        weights = stage.data.task_weights
        if not any(weights.values()):
            continue
        tasks = [_task(dataset) for dataset in _trained_on(stage.data, config_dir)]
        known = list(dict.fromkeys(task for task in tasks if task is not None))
        without = [task for task in known if task not in weights]
        given = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        if without:
            found[
                f"{_FIELD}: got {given}; {', '.join(map(repr, without))} {'is' if len(without) == 1 else 'are'} among "
                "the training data, too: give every task a weight (0 leaves it out), or none at all"
            ] = None
        if tasks and None not in tasks:
            for name in weights:
                if name not in known:
                    found[
                        f"{_FIELD}: got {given}; there is no task {name!r} among the training data"
                        f"{nearest(name, known)} (has: {', '.join(known)})"
                    ] = None
    return list(found)


def _task(dataset: DatasetSpec) -> str | None:
    return None if dataset.task is None else dataset.task.type


def _trained_on(data: DataConfig, config_dir: Path | None) -> Sequence[DatasetSpec]:
    datasets: Iterable[DatasetSpec] = data.train
    if data.data_config_path is not None:
        try:
            path = find_spec(data.data_config_path, Path.cwd(), config_dir)
            datasets = _read(path, path.stat().st_mtime_ns)
        except (DataError, OSError):  # told when the data are opened
            return []
    return [dataset for dataset in datasets if _trains(dataset)]


@lru_cache(maxsize=32)
def _read(path: Path, changed: int) -> tuple[DatasetSpec, ...]:
    """A specification, read once for all runs of a sweep while it does not change."""
    return read_spec(path).datasets


def _trains(dataset: DatasetSpec) -> bool:
    """Whether any of a dataset is for training."""
    parts = dataset.partitions or {"": dataset.whole}
    return any((part.destination or told_destination(name) or "train") == "train" for name, part in parts.items())
