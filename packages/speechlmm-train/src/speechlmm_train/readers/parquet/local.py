"""Opens Parquet and Arrow files, and what `save_to_disk` wrote. Imports no torch, and pyarrow late."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.checkpoint.atomic import atomic_write
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.records import Records
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection
from speechlmm_train.readers.file_cache import cached_file
from speechlmm_train.readers.file_pattern import FoundFile, find_files, find_partitions
from speechlmm_train.readers.parquet.arrow_records import ArrowRecords
from speechlmm_train.readers.record_reader import ConcatRecords

if TYPE_CHECKING:
    from speechlmm_train.readers.parquet.config import ParquetDatasetConfig

FORMS = ("{partition}-*-of-*", "data/{partition}-*-of-*", "{partition}/**/*", "{partition}")
"""How files are named on the hub, and by `to_parquet`."""
ENDINGS = (".parquet", ".arrow")
BATCH_ROWS = 128
"""Rows that are converted at a time; with audio in them, some megabytes."""


def open_local(config: ParquetDatasetConfig, root: Path, selection: Selection) -> Records:
    """Opens the files below ``root`` that the selection asks for.

    Raises:
        DataError: There are none, or what is wrong with them: all faults are counted, the first listed.
    """
    found = [FoundFile(root, {})] if root.is_file() else _files(config, root, selection)
    return open_files(found, root.parent if root.is_file() else None)


def open_files(found: list[FoundFile], media_root: Path | None = None) -> Records:
    """Opens Arrow files, and Parquet files as Arrow.

    Raises:
        DataError: What is wrong with them.
    """
    faults = Faults()
    parts: list[Records] = []
    for one in found:
        try:
            path = as_arrow(one.path)
            root = str((media_root or one.path.parent).absolute())
            parts.append(ArrowRecords(path, shown=str(one.path), told=one.told, media_root=root))
        except DataError as exc:
            faults.extend(exc)
        except OSError as exc:
            faults.add(str(one.path), f"cannot be read: {exc.strerror or exc}")
    faults.raise_if_any()
    records = ConcatRecords(parts, [one.path for one in found])
    if not len(records):
        raise DataError(f"{', '.join(str(one.path) for one in found[:3])}: no rows; check `path` and `files`")
    return records


def local_partitions(config: ParquetDatasetConfig, root: Path) -> list[str]:
    """Names of the partitions that were saved, or that the files' names tell."""
    if (root / "dataset_dict.json").is_file():
        return sorted(config.names.ours("partition", name) for name in _saved_splits(root))
    if not root.is_dir() or (root / "state.json").is_file():
        return []
    for templates in [config.templates] if config.templates else _default_templates():
        if found := find_partitions(root, templates, config.names):
            return found
    return []


def as_arrow(path: Path) -> Path:
    """A Parquet file as an Arrow file in the user's cache, made once for its size and time; an Arrow file itself.

    Raises:
        DataError: It is damaged.
        OSError: It cannot be read, or the cache not be written to.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            return path
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = cached_file(path, "arrow", f"-{path.stem[-100:]}.arrow")
    if target.is_file():
        return target
    try:
        with pq.ParquetFile(path) as table, atomic_write(target) as temporary:
            _convert(table, temporary)
    except (pa.ArrowException, OSError) as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            raise  # the system's; what pyarrow itself finds wrong with a file has no number
        reason = " ".join(str(exc).split())[:200]
        raise DataError(
            f"{path}: no Parquet file that can be read, or a damaged one ({reason}); make it again"
        ) from exc
    return target


def _convert(table: Any, target: Path) -> None:
    import pyarrow as pa
    from tqdm import tqdm

    total = table.metadata.num_rows
    with (
        pa.OSFile(str(target), "wb") as file,
        pa.ipc.new_stream(file, table.schema_arrow) as writer,
        tqdm(total=total, desc="rows to Arrow", delay=3, disable=None) as progress,
    ):
        for batch in table.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            writer.write_batch(batch)
            progress.update(batch.num_rows)


def _files(config: ParquetDatasetConfig, root: Path, selection: Selection) -> list[FoundFile]:
    if (root / "dataset_dict.json").is_file():
        return _saved_dict(config, root, selection)
    if (root / "state.json").is_file():
        return _saved(root, {})
    if config.templates:
        return find_files(root, config.templates, selection, config.names)
    fault: DataError | None = None
    for templates in [*_default_templates(), [f"**/*{ending}" for ending in ENDINGS]]:
        try:
            return find_files(root, templates, selection, config.names)
        except DataError as exc:
            named = selection.partition is not None and find_partitions(root, templates, config.names)
            if named:
                raise  # by partition, and this one is not there
            fault = fault or exc
    raise fault or DataError(f"{root}: no Parquet or Arrow files; check `path` and `files`")


def _default_templates() -> list[list[str]]:
    return [[f"{form}{ending}" for ending in ENDINGS] for form in FORMS]


def _saved_splits(root: Path) -> list[str]:
    splits = _json(root / "dataset_dict.json").get("splits")
    if not isinstance(splits, list) or not all(isinstance(one, str) and one == Path(one).name for one in splits):
        raise DataError(f"{root / 'dataset_dict.json'}: expected the names of its `splits`, got {splits!r:.80}")
    return splits


def _saved_dict(config: ParquetDatasetConfig, root: Path, selection: Selection) -> list[FoundFile]:
    splits = _saved_splits(root)
    if selection.partition is not None:
        wanted = config.names.written("partition", selection.partition)
        if wanted not in splits:
            raise DataError(f"{root}: no partition {wanted!r}; those that are there: {', '.join(splits)}")
        splits = [wanted]
    return [one for name in splits for one in _saved(root / name, {"partition": config.names.ours("partition", name)})]


def _saved(root: Path, told: dict[str, str]) -> list[FoundFile]:
    files = _json(root / "state.json").get("_data_files")
    names = [one.get("filename") if isinstance(one, dict) else None for one in files] if isinstance(files, list) else []
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise DataError(f"{root / 'state.json'}: expected the names of its `_data_files`, got {files!r:.80}")
    return [FoundFile(root / str(name), told) for name in names]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise DataError(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}; save it again") from exc
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an object, got {value!r:.60}; save it again")
    return value
