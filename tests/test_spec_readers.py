"""Every field of every reader wrong in turn: a line for the user, and no other exception."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from speechlmm_core.data.spec.entries import dataset_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.data.spec.partition_names import told_destination
from speechlmm_core.data.spec.presets import preset_files, read_preset
from speechlmm_core.data.spec.schema import SpecFile
from speechlmm_core.errors import ConfigError, DataError, MissingDependencyError
from speechlmm_core.interfaces.dataset import datasets
from speechlmm_core.registry import Registry
from speechlmm_core.schema import export_json_schema

BAD: list[Any] = [
    *(None, True, 0, -1, 10**400, math.inf, math.nan, "", "x" * 5000, "\0", "\ud800", "{", "{}", "{x}", "../..", "*"),
    *("(", "${X}", [], [None], ["{"], {}, {"": ""}, {"a": "{"}, {"a": {"b": None}}, datetime.date(2020, 1, 1), b"x"),
]


@pytest.fixture(autouse=True, scope="module")
def _known_components() -> Iterator[None]:
    """What is installed, looked up once and not for each of thousands of entries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, "entry_points", lru_cache(Registry.entry_points))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def check(entry: Any, folder: Path) -> None:
    try:
        opened = open_spec([dataset_spec(entry)], base=folder)
        for one in opened:
            one.examples.chat(0)
    except (DataError, ConfigError, MissingDependencyError):
        return


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(export_json_schema(SpecFile))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.txt").write_text("a word\n")
    (tmp_path / "train" / "a.wav").write_bytes(b"RIFF no sound")
    (tmp_path / "train.csv").write_text("id,audio,text\n1,train/a.wav,a word\n")
    (tmp_path / "train.tsv").write_bytes(b"\xff\xfe\n")
    (tmp_path / "train.tar").write_bytes(b"no archive")
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    return tmp_path


@pytest.mark.parametrize("name", datasets.names())
def test_every_field_of_a_reader_wrong_in_turn(name: str, corpus: Path) -> None:
    fields = [field for field in datasets.get(name).model_fields if field != "type"]
    for path in (".", "train.csv", "none"):
        for task in (None, "asr", "slu"):
            check({"type": name, "path": path, "task": task}, corpus)
    for field in fields:
        for value in BAD:
            check({"type": name, "path": ".", "task": "asr", field: value}, corpus)


NAMES = {
    "eval": "dev devel val validation dev-clean dev-other",
    "test": "test tst-COMMON tst-HE test-clean test-other",
    "train": "train train-noisy train-clean-100 train_synthetic train_115 pretrain validated other ready all",
}
"""Partitions of the corpora that have presets, by what they are for."""


@pytest.mark.parametrize("name", sorted(preset_files()))
def test_partitions_are_for_what_their_names_say(name: str) -> None:
    preset = read_preset(name)
    task = next(iter(preset.get("tasks") or {None: None}))
    spec = dataset_spec({"preset": name, "path": ".", "task": task})
    for partition, settings in spec.partitions.items():
        expected = next(one for one, names in NAMES.items() if partition in names.split())
        assert (settings.destination or told_destination(partition) or "train") == expected
    for destination, names in NAMES.items():
        for partition in names.split():
            assert (told_destination(partition) or "train") == destination


@pytest.mark.parametrize("name", sorted(preset_files()))
def test_presets_are_entries(name: str, corpus: Path, schema: jsonschema.Draft202012Validator) -> None:
    for task in read_preset(name).get("tasks") or {None: None}:
        entry = {"preset": name, "path": ".", "task": task}
        assert dataset_spec(entry).name == name
        schema.validate({"datasets": [entry]})
        check(entry, corpus)
        check({**entry, "languages": "xx-yy", "partitions": ["none"]}, corpus)
