"""The JSON lines that `infer` writes, in order and as they come; resumable. Imports no torch."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import IO, Any

from speechlmm_core.checkpoint.atomic import atomic_write
from speechlmm_core.errors import ConfigError, DataError

PARTIAL = ".partial"
ABOUT = ("task", "source_language", "target_language", "question")
"""Keys that must be the same in a line for it to be kept."""


def partial_path(path: Path) -> Path:
    """Where a resumed output is written until it is whole."""
    return path.with_name(path.name + PARTIAL)


def check_output(path: Path | None, *, resume: bool, overwrite: bool) -> None:
    """Refuses to touch an output that is there already, or that could not be written.

    Raises:
        ConfigError: It is there and neither flag is given, or both are, or there is nothing to resume in.
    """
    if resume and overwrite:
        raise ConfigError("give either --resume or --overwrite, not both")
    if path is None:
        if resume:
            raise ConfigError("--resume goes on with an output file: name it with --output")
        return
    if path.is_dir():
        raise ConfigError(f"--output {str(path)!r} is a folder; expected a file")
    for file in (path, partial_path(path)):
        if file.is_file() and file.stat().st_size and not (resume or overwrite):
            raise ConfigError(
                f"--output {str(file)!r} is there already; give --resume to go on with it, or --overwrite"
            )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"cannot make the folder of --output {str(path)!r}: {exc.strerror or exc}") from exc
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--output {str(path)!r} cannot be written: no permission")


def read_done(path: Path, about: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The lines that succeeded in earlier runs, by key. What they left in two files is put together in one.

    Args:
        path: The output.
        about: The task and its languages; None where each line has those of its dataset.

    Raises:
        DataError: The file holds something else, or lines of another task.
    """
    records = _read(path, about)
    partial = partial_path(path)
    if partial.is_file():
        # The run that wrote it was resuming, and was stopped. Its lines must be safe before it is written anew.
        records |= _read(partial, about)
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"".join(encode(record) for record in records.values()))
        partial.unlink()
    return {key: record for key, record in records.items() if record["error"] is None}


def _read(file: Path, about: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    if not file.is_file():
        return {}
    records: dict[str, dict[str, Any]] = {}
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            key, _ = record["key"], record["error"]
            other = {name: record.get(name) for name in ABOUT}
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            if number == len(lines):  # torn when the earlier run was killed
                continue
            raise DataError(f"{file}:{number} is not a line of an output of `infer`: {exc}") from exc
        wanted = other if about is None else {name: about.get(name) for name in ABOUT}
        if other != wanted or ("dataset" in record) != (about is None):
            said = ", ".join(f"{name} {value!r}" for name, value in other.items() if value is not None)
            raise DataError(f"{file}:{number} is of another call ({said}); give another --output, or --overwrite")
        records[key] = record
    return records


@contextmanager
def open_output(path: Path | None, *, resume: bool) -> Iterator[IO[bytes]]:
    """Opens the output. A resumed one is written beside the old one, which it replaces at the end.

    Where the output is standard output, nothing else gets there: what a library prints goes to standard error.
    """
    if path is None:
        lines = sys.stdout.buffer
        with redirect_stdout(sys.stderr):
            yield lines
        return
    target = partial_path(path) if resume else path
    with target.open("wb") as file:
        if not resume:
            partial_path(path).unlink(missing_ok=True)
        yield file
        file.flush()
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            os.fsync(file.fileno())
    if resume:
        os.replace(target, path)


def encode(record: Mapping[str, Any]) -> bytes:
    """A record as a line."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file's name that is no UTF-8
        return json.dumps(record).encode() + b"\n"


def write_record(file: IO[bytes], record: Mapping[str, Any]) -> None:
    """Writes one line and hands it to the system."""
    file.write(encode(record))
    file.flush()
