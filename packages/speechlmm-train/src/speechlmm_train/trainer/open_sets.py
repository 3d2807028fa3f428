"""Opens the datasets that a run names: in its configuration, or in the specification that it points to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechlmm_core.data.examples import ConcatExamples
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.index.open import index_dir_of
from speechlmm_core.data.shipped import base_of
from speechlmm_core.data.spec.config import Destination
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.find import find_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.errors import DataError
from speechlmm_train.data_config import DataConfig

WANTED: tuple[Destination, ...] = ("train", "eval", "guard")
"""What a training opens; a test set is left alone."""


@dataclass(frozen=True)
class OpenedSets:
    """The datasets of a stage, in the order in which the configuration names them."""

    train: tuple[OpenedDataset, ...]
    evaluation: tuple[OpenedDataset, ...]
    guard: tuple[OpenedDataset, ...]


def open_sets(data: DataConfig, base: Path) -> OpenedSets:
    """Opens the datasets that a `data:` section names.

    Args:
        data: The section.
        base: Folder where relative paths start; those in a specification start at its own folder.

    Raises:
        DataError: The specification or the data are wrong: all faults together.
    """
    if data.data_config_path is not None:
        path = find_spec(data.data_config_path, base)
        index_dir = index_dir_of(path) if data.index_dir is None else base / Path(data.index_dir).expanduser()
        opened = open_spec(read_spec(path), base=base_of(path, base), destinations=WANTED, index_dir=index_dir)
    else:
        index_dir = None if data.index_dir is None else base / Path(data.index_dir).expanduser()
        opened = []
        faults = Faults()
        for entries in (data.train, data.eval, data.guard):  # names are told apart within each list
            try:
                opened += open_spec(entries, base=base, index_dir=index_dir)
            except DataError as exc:
                faults.extend(exc)
        faults.raise_if_any()
    found = {name: tuple(one for one in opened if one.destination == name) for name in WANTED}
    if not found["train"]:
        raise DataError(f"{data.data_config_path}: no dataset is for training; give one the destination `train`")
    return OpenedSets(found["train"], found["eval"], found["guard"])


def absent(data: DataConfig, base: Path) -> list[str]:
    """Paths of the datasets that a `data:` section names, where there is nothing; of templates, their beginnings.

    Raises:
        DataError: There is no such specification, or what is wrong with it.
    """
    specs = [*data.train, *data.eval, *data.guard]
    if data.data_config_path is not None:
        path = find_spec(data.data_config_path, base)
        base, specs = base_of(path, base), [*read_spec(path).datasets]
    named = [str(getattr(spec.reader, "path", "") or "") for spec in specs]
    return [name for name in named if name and not _start_of(base, name).exists()]


def _start_of(base: Path, path: str) -> Path:
    head, brace, _ = path.partition("{")
    return base / Path(head.rpartition("/")[0] if brace else head).expanduser()


def in_a_row(opened: Sequence[OpenedDataset]) -> ConcatExamples | None:
    """The examples of all of them, one after the other; None where there are none."""
    return ConcatExamples([one.examples for one in opened]) if opened else None
