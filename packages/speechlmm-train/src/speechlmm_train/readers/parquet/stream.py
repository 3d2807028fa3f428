"""Reads records of the hub one after the other, and keeps them with their media in the user's cache.

In a folder for each dataset, subset, revision and partition, ``media.bin`` has the bytes of media in a row and
``records.jsonl`` a line for each record, which names its media as byte ranges. A record counts when its line is whole,
so that an interrupted run goes on after the last one; a second process waits for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import IO, Any

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.header_cache import cache_folder
from speechlmm_core.data.records import Records
from speechlmm_core.errors import DataError
from speechlmm_train.readers.parquet.hub_errors import explained
from speechlmm_train.readers.record_reader import ConcatRecords
from speechlmm_train.readers.table.dialect import Decoder, JsonLines
from speechlmm_train.readers.table.line_table import LineTable

MEDIA, RECORDS, END = "media.bin", "records.jsonl", "complete"


def open_stream(
    name: str,
    partition: str,
    subset: str | None,
    revision: str | None,
    *,
    limit: int | None,
    told: Mapping[str, str],
) -> Records:
    """The first records of a partition; only those that are not kept yet are read.

    Args:
        name: The dataset on the hub.
        partition: As the hub calls it.
        subset: Its subset.
        revision: Its branch, tag or commit.
        limit: How many are asked for; None for all.
        told: What is known of each.

    Raises:
        DataError: The hub cannot be reached, or a record cannot be kept.
    """
    identity = json.dumps([name, partition, subset, revision])
    digest = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    folder = cache_folder() / "streams" / f"{name.replace('/', '--')}-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            spool = _Spool(folder)
            try:
                if not (folder / END).exists() and (limit is None or spool.count < limit):
                    _fetch(spool, name, partition, (subset, revision), limit)
            finally:
                spool.close()
            count = spool.count if limit is None else min(limit, spool.count)
    except OSError as exc:
        raise DataError(f"{folder}: cannot be written to: {exc.strerror or exc}; set $SPEECHLMM_CACHE") from exc
    faults = Faults()
    shown = f"{name}/{partition}"
    rows = LineTable(
        folder / RECORDS,
        JsonLines(Decoder()),
        shown=shown,
        skip_first=False,
        where={},
        parts={},
        told=told,
        media_root=str(folder),
        faults=faults,
        limit=count,
    )
    faults.raise_if_any()
    if not len(rows):
        raise DataError(f"the hub's dataset {name!r} has no records in {partition!r}")
    return ConcatRecords([rows], [folder / RECORDS])


def _fetch(spool: _Spool, name: str, partition: str, version: tuple[str | None, str | None], limit: int | None) -> None:
    import datasets
    from tqdm import tqdm

    with explained(name):
        stream: Any = datasets.load_dataset(name, version[0], split=partition, revision=version[1], streaming=True)
        labels: dict[str, list[str]] = {}
        for column, feature in (stream.features or {}).items():
            if isinstance(feature, datasets.ClassLabel):
                labels[column] = list(feature.names)
            if isinstance(feature, (datasets.Audio, datasets.Video, datasets.Image)):
                stream = stream.cast_column(column, type(feature)(decode=False))
        stream = stream.skip(spool.count)
        with tqdm(desc=f"{name}/{partition}", total=limit, initial=spool.count, delay=3, disable=None) as progress:
            for record in stream:
                spool.add({name: _named(value, labels.get(name)) for name, value in record.items()})
                progress.update()
                if limit is not None and spool.count >= limit:
                    return
    spool.close()
    write_text(spool.folder / END, f"{spool.count}\n")


class _Spool:
    """The files that records are kept in; what an interrupted run left half-written is cut off."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self._end = 0
        lines = 0
        self._records: IO[bytes] = (folder / RECORDS).open("a+b")
        self._media: IO[bytes] = (folder / MEDIA).open("a+b")
        self._records.seek(0)
        for line in self._records:
            try:
                end = json.loads(line)["__end__"] if line.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError):
                end = None
            if end is None or end > os.fstat(self._media.fileno()).st_size:
                break
            self.count, self._end, lines = self.count + 1, end, lines + len(line)
        self._records.truncate(lines)
        self._media.truncate(self._end)

    def add(self, record: Mapping[str, Any]) -> None:
        """Keeps a record: first its media, then its line."""
        made = {name: self._kept(value) for name, value in record.items()}
        self._media.flush()
        line = json.dumps({**made, "__end__": self._end}, ensure_ascii=False, default=_plain)
        self._records.write(line.encode("utf-8", "replace") + b"\n")
        self.count += 1

    def close(self) -> None:
        """Makes sure that all is written."""
        for file in (self._media, self._records):
            if file.closed:
                continue
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def _kept(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return self._range(value, None)
        if not isinstance(value, Mapping) or "bytes" not in value:
            return value
        if value["bytes"] is None:
            return None if value.get("path") is None else {"path": value["path"]}
        return self._range(value["bytes"], value.get("path"))

    def _range(self, content: bytes, member: str | None) -> dict[str, Any]:
        start = self._end
        self._media.write(content)
        self._end += len(content)
        return {"path": MEDIA, "offset": start, "size": len(content), "member": member or f"record {self.count}"}


def _named(value: Any, names: list[str] | None) -> Any:
    """The name of a class; other values are as they are."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
