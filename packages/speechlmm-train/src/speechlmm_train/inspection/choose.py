"""What is inspected: the datasets that the command line names, the model, and which examples. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speechlmm_core.data.draw import permutation
from speechlmm_core.data.spec.config import Destination
from speechlmm_core.data.spec.file import named_apart
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.registry import nearest
from speechlmm_train.compose import Composed, compose_config, import_file
from speechlmm_train.evaluate.data import DataSource, of_configuration, of_manifests, of_specification

OVERRIDE = re.compile(r"[+~]{0,2}[\w./@:-]+=|~[\w./@:-]+$")
"""What a KEY=VALUE looks like."""
MANIFESTS = (".jsonl", ".json")


@dataclass(frozen=True)
class Named:
    """What the command line names."""

    source: DataSource
    composed: Composed | None
    """The configuration, where there are overrides."""


@dataclass(frozen=True)
class Chosen:
    """Datasets to show."""

    datasets: list[OpenedDataset]
    offsets: list[int]
    """Training examples before each, on which its draws depend."""
    notes: list[str]


def name(
    what: Sequence[str],
    *,
    config_name: str,
    config_dir: Path | None,
    imports: Sequence[Path],
    index_dir: Path | None,
    model_path: Path | None = None,
) -> Named:
    """Tells manifests, a specification and overrides apart.

    Args:
        what: The arguments.
        config_name: The configuration that overrides are for.
        config_dir: The user's folder of configurations.
        imports: The user's own Python files.
        index_dir: What `prepare` wrote.
        model_path: Folder of a saved model; overrides then need not name one.

    Raises:
        CheckpointError: There is no model in `model_path`.
        ConfigError: Nothing is named, or two things at once; the configuration is wrong, or there is no `index_dir`.
        DataError: There is no such specification, or it is wrong.
    """
    overrides = [one for one in what if OVERRIDE.match(one) and not Path(one).exists()]
    files = [one for one in what if one not in overrides]
    manifests = [one for one in files if one.endswith(MANIFESTS)]
    if not what or (manifests and manifests != files) or (not manifests and len(files) > 1):
        got = f"got {', '.join(map(repr, files))}" if files else "got nothing"
        raise ConfigError(f"expected one dataset specification, or manifests, or the KEY=VALUEs of a run; {got}")
    if index_dir is not None and not index_dir.expanduser().is_dir():
        raise ConfigError(f"--index-dir {str(index_dir)!r}: no such folder; `speechlmm-train prepare` makes one")
    for path in imports:
        import_file(path)
    composed = None
    if overrides:
        given = [*overrides, *_filled(files, bool(manifests), overrides, data_only=model_path is not None)]
        model = None if model_path is None else _saved(model_path)
        composed = compose_config(config_name, given, config_dir=config_dir, model=model)
    if manifests:
        source = of_manifests([Path(one) for one in manifests])
    elif files:
        source = of_specification(files[0], config_dir=config_dir)
    else:
        assert composed is not None
        source = of_configuration(composed.config.data, config_dir=config_dir)
    if index_dir is not None:
        source = replace(source, index_dir=index_dir.expanduser())
    return Named(source, composed)


def _saved(model_path: Path) -> dict[str, Any]:
    """The configuration of a saved model."""
    from speechlmm_core.checkpoint.load import read_model_config, resolve_model_path

    return read_model_config(resolve_model_path(model_path)).model_dump(mode="json")


def _filled(files: Sequence[str], are_manifests: bool, overrides: Sequence[str], *, data_only: bool) -> list[str]:
    """What a run's configuration must have and the command line need not say where files or a model are named."""
    if not files and not data_only:
        return []
    quoted = ", ".join(_quote(one) for one in files)
    data: list[str] = []
    if files:
        data = [f"data.train=[{quoted}]"] if are_manifests else ["data.train=[]", f"data.data_config_path={quoted}"]
    training = ["training.output_dir=inspection", "training.max_steps=1"]
    return data + [one for one in training if not any(given.startswith(one.split("=")[0] + "=") for given in overrides)]


def _quote(text: str) -> str:
    """A string as Hydra's grammar quotes it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def open_named(source: DataSource, names: Sequence[str], split: Destination | None) -> Chosen:
    """Opens the datasets, and counts the training examples before each.

    Args:
        source: What is named.
        names: Entries to which it is limited; empty for all.
        split: What they are for; None for all.

    Raises:
        ConfigError: There is no dataset of such a name.
        DataError: The data are wrong, or there are none for this.
    """
    specs = named_apart(source.datasets)
    for one in names:
        known = [spec.name for spec in specs]
        if one not in known:
            raise ConfigError(
                f"--dataset {one!r}: {source.label} has none of that name{nearest(one, known)} "
                f"(it has: {', '.join(known)})"
            )
    wanted: set[Destination] | None = None if split is None else {split}
    shown = [spec for spec in specs if not names or spec.name in names]
    opened = open_spec(shown, base=source.base, destinations=wanted, index_dir=source.index_dir)
    if not opened:
        raise DataError(f"{source.label} names nothing{f' with the destination {split!r}' if split else ''} to show")
    others: list[OpenedDataset] = []
    notes: list[str] = []
    if any(one.destination == "train" for one in opened):
        last = max(i for i, spec in enumerate(specs) if spec in shown)
        before = [spec for spec in specs[:last] if spec not in shown]
        try:
            others = open_spec(before, base=source.base, destinations={"train"}, index_dir=source.index_dir)
        except DataError as exc:
            notes.append(
                "prompts and augmentation are drawn otherwise than in training, as a dataset that comes before cannot "
                f"be opened: {'; '.join(line.strip() for line in str(exc).splitlines())}"
            )
    return Chosen(opened, _offsets(opened, others, [spec.name for spec in specs]), notes)


def _offsets(opened: Sequence[OpenedDataset], others: Sequence[OpenedDataset], order: Sequence[str]) -> list[int]:
    """Training examples before each of the opened datasets, in the order of the specification."""
    in_order = sorted([*opened, *others], key=lambda one: order.index(one.dataset))  # parts of one keep theirs
    sizes = [len(one.examples) if one.destination == "train" else 0 for one in in_order]
    before = {id(one): sum(sizes[:number]) for number, one in enumerate(in_order)}
    return [before[id(one)] for one in opened]


def pick(dataset: OpenedDataset, count: int, index: int | None, seed: int) -> list[int]:
    """Numbers of the examples to show: the one asked for, or some at random, always the same.

    Raises:
        ConfigError: There is no example of that number.
    """
    total = len(dataset.examples)
    if index is not None:
        if not -total <= index < total:
            raise ConfigError(f"--index {index}: {dataset.name} has {total} examples, numbered from 0")
        return [index % total]
    return sorted(int(number) for number in permutation(seed, 0, total, "inspection")[:count])


def inputs_of(datasets: Sequence[OpenedDataset], picked: Sequence[Sequence[int]]) -> list[str]:
    """Inputs that the chats of some examples name, in order of appearance."""
    found: dict[str, None] = {}
    for dataset, indices in zip(datasets, picked, strict=True):
        for index in indices:
            try:
                messages = dataset.examples.chat(index)
            except DataError:
                continue  # comes up when the sample is made
            found.update(dict.fromkeys(item["type"] for message in messages for item in message.media))
    return list(found)
