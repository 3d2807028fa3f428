"""The JSON lines that `infer` writes, in order and as they come; resumable. Imports no torch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from speechlmm_core.errors import ConfigError, DataError

PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """Where a resumed output is written until it is whole."""
    return path.with_name(path.name + PARTIAL)


def check_output(path: Path | None, *, resume: bool, overwrite: bool) -> None:
    """Refuses to touch an output that is there already.

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
    if path.exists() and path.stat().st_size and not (resume or overwrite):
        raise ConfigError(f"--output {str(path)!r} is there already; give --resume to go on with it, or --overwrite")


def read_done(path: Path) -> dict[str, dict[str, Any]]:
    """The lines that succeeded in an earlier run, by key; a torn last line is left out.

    Raises:
        DataError: The file holds something else.
    """
    done: dict[str, dict[str, Any]] = {}
    for file in (path, partial_path(path)):
        if not file.is_file():
            continue
        raw = file.read_bytes().split(b"\n")
        for number, line in enumerate(raw, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                key, error = record["key"], record["error"]
            except (ValueError, KeyError, TypeError) as exc:
                if number == len(raw):  # torn when the earlier run was killed
                    continue
                raise DataError(f"{file}:{number} is not a line of an output of `infer`: {exc}") from exc
            if error is None:
                done[key] = record
    return done


@contextmanager
def open_output(path: Path | None, *, resume: bool) -> Iterator[IO[str]]:
    """Opens the output. A resumed one is written beside the old one, which it replaces at the end."""
    if path is None:
        yield sys.stdout
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    target = partial_path(path) if resume else path
    with target.open("w", encoding="utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    if resume:
        os.replace(target, path)


def write_record(file: IO[str], record: Mapping[str, Any]) -> None:
    """Writes one line and hands it to the system."""
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    file.flush()
