"""Opens datasets of the Hugging Face hub through `datasets`, which is imported late; never runs their code."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.data.records import Records
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection
from speechlmm_train.readers.file_pattern import FoundFile, chosen
from speechlmm_train.readers.parquet.local import open_files

if TYPE_CHECKING:
    from speechlmm_train.readers.parquet.config import ParquetDatasetConfig

logger = logging.getLogger(__name__)

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
    try:
        return config.subset.format(**values)
    except (KeyError, IndexError, ValueError) as exc:
        raise DataError(
            f"`subset` {config.subset!r} needs {exc}, which the specification does not give; name its `languages`"
        ) from exc


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Puts what goes wrong with the hub, or while reading its records, into one line.

    Raises:
        DataError: It did.
    """
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError, ImportError, DatasetsError, pa.ArrowException) as exc:
        reason = " ".join(str(exc).split())[:300] or type(exc).__name__
        if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no"):
            hint = (
                "$HF_HUB_OFFLINE is set, which forbids to ask the hub; unset it, or download the dataset beforehand "
                f"(hf download --repo-type dataset {name}) and give its folder as `path`"
            )
        else:
            hint = (
                "check the name, `subset`, `revision` and the network; a gated dataset needs $HF_TOKEN, and one that "
                "runs code of its own is not read"
            )
        raise DataError(f"the hub's dataset {name!r} cannot be read ({reason}): {hint}") from exc
