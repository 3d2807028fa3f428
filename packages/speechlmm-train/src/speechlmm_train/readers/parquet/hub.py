"""Opens datasets of the Hugging Face hub through `datasets`, which is imported late; never runs their code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.data.records import Records
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection
from speechlmm_train.readers.file_pattern import FoundFile, chosen
from speechlmm_train.readers.parquet.hub_errors import explained
from speechlmm_train.readers.parquet.local import open_files

if TYPE_CHECKING:
    from speechlmm_train.readers.parquet.config import ParquetDatasetConfig

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def open_hub(config: ParquetDatasetConfig, name: str, selection: Selection) -> Records:
    """Opens a dataset of the hub, or a part of it.

    Raises:
        DataError: There is none, or the hub cannot be reached.
    """
    if not NAME.fullmatch(name) or ".." in name:
        raise DataError(f"`hub` {name!r} is no dataset's name (`<organisation>/<dataset>`)")
    if config.path:
        raise DataError(f"`path` {config.path!r} and `hub` {name!r} exclude each other; keep one")
    partition = selection.partition and config.names.written("partition", selection.partition)
    if partition is not None and not re.fullmatch(r"[\w.-]+", partition):
        raise DataError(f"{partition!r} is no partition's name; give a part of one by its `amount`")
    subset = _subset(config, selection)
    if config.streaming:
        from speechlmm_train.readers.parquet.stream import open_stream

        if partition is None:
            raise DataError(f"`streaming` of {name!r} needs its partitions by name: `partitions: {{train: {{}}}}`")
        told = {"partition": str(selection.partition)}
        return open_stream(name, partition, subset, config.revision, limit=selection.limit, told=told)
    import datasets

    with explained(name):
        loaded: Any = datasets.load_dataset(name, subset, split=partition, revision=config.revision)
    splits: Mapping[str, Any] = loaded if isinstance(loaded, Mapping) else {str(partition): loaded}
    found: list[FoundFile] = []
    rows = 0
    for split, one in splits.items():
        told = {"partition": config.names.ours("partition", str(split))}
        found += [FoundFile(Path(file["filename"]), told) for file in one.cache_files]
        rows += len(one)
    records = open_files(found)
    if len(records) != rows:
        raise DataError(f"the hub's dataset {name!r}: {rows} rows, but its files hold {len(records)}; download it anew")
    return records


def _subset(config: ParquetDatasetConfig, selection: Selection) -> str | None:
    if config.subset is None:
        return None
    values = {key: config.names.written(key, value) for key, value in chosen(selection).items()}

    def filled(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise DataError(
                f"`subset` {config.subset!r} needs {match[1]!r}, which the specification does not give; "
                "name its `languages`"
            )
        return values[match[1]]

    return PLACEHOLDER.sub(filled, config.subset)
