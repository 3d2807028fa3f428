"""Which datasets are evaluated on: manifests, a specification, or those that a run names. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechlmm_core.data.index.open import index_dir_of
from speechlmm_core.data.shipped import base_of
from speechlmm_core.data.spec.config import DatasetSpec, Destination
from speechlmm_core.data.spec.entries import dataset_spec
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.find import find_spec
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.data.spec.split import open_split
from speechlmm_train.compose import compose_config
from speechlmm_train.data_config import DataConfig


@dataclass(frozen=True)
class DataSource:
    """Datasets that are named, but not opened yet."""

    datasets: Sequence[DatasetSpec]
    base: Path
    """Folder where relative paths start."""
    label: str
    """How messages call it."""
    index_dir: Path | None = None
    whole: bool = False
    """Whether all of it is meant, whatever it is for: manifests."""

    def open(self, split: Destination | None, names: Sequence[str]) -> list[OpenedDataset]:
        """Opens what is to be evaluated on.

        Args:
            split: What it is for; None for test sets, or evaluation sets where there is no test set.
            names: Datasets to which it is limited, by name; empty for all.

        Raises:
            DataError: The data are wrong, or there are none for this.
            ConfigError: There is no dataset of such a name.
        """
        return open_split(
            self.datasets,
            base=self.base,
            split=split,
            names=names,
            index_dir=self.index_dir,
            label=self.label,
            whole=self.whole,
        )


def of_manifests(paths: Sequence[Path]) -> DataSource:
    """JSONL manifests, all of each."""
    specs = [dataset_spec(path).model_copy(update={"name": path.stem}) for path in paths]
    return DataSource(specs, Path.cwd(), "the command line", whole=True)


def of_specification(name: str, *, config_dir: Path | None = None, index_dir: Path | None = None) -> DataSource:
    """A dataset specification: a path, or a name below `conf/datasets`.

    Raises:
        DataError: There is none, or what is wrong with it.
    """
    path = find_spec(name, Path.cwd(), config_dir)
    return DataSource(read_spec(path).datasets, base_of(path), str(path), index_dir or index_dir_of(path))


def of_run(
    config_name: str, overrides: Sequence[str], *, config_dir: Path | None = None, imports: Sequence[Path] = ()
) -> DataSource:
    """The datasets of a run's configuration.

    Raises:
        ConfigError: What is wrong with the configuration.
        DataError: What is wrong with the specification that it names.
    """
    composed = compose_config(config_name, overrides, config_dir=config_dir, imports=imports)
    return of_configuration(composed.config.data, config_dir=config_dir)


def of_configuration(data: DataConfig, *, config_dir: Path | None = None) -> DataSource:
    """The datasets of a typed configuration.

    Raises:
        DataError: What is wrong with the specification that it names.
    """
    index_dir = None if data.index_dir is None else Path(data.index_dir).expanduser()
    if data.data_config_path is not None:
        return of_specification(data.data_config_path, config_dir=config_dir, index_dir=index_dir)
    return DataSource([*data.train, *data.eval, *data.guard], Path.cwd(), "the configuration", index_dir)
