"""The checkpoints of a run: which there are, which of them are whole, which are removed."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from speechlmm_core.errors import CheckpointError
from speechlmm_train.trainer.manifest import damage

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Progress:
    """Where a checkpoint stands in a run."""

    stage: int
    """Index of the stage."""
    stage_name: str
    step: int
    """Steps done within the stage."""
    total_step: int
    """Steps done in all stages."""

    def write(self, folder: Path) -> None:
        """Writes it into a checkpoint."""
        (folder / PROGRESS).write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint of a run."""

    path: Path
    progress: Progress


def numbered(folder: Path) -> list[Path]:
    """All that is named like a checkpoint, oldest first."""
    found = [path for path in folder.iterdir() if CHECKPOINT.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def open_checkpoint(path: Path, *, thorough: bool) -> Checkpoint | None:
    """A checkpoint; None with a warning that names the fault, if it is damaged.

    Args:
        path: Its folder.
        thorough: Whether every file is read.
    """
    fault = damage(path, thorough=thorough)
    progress = None
    if fault is None:
        try:
            progress = Progress(**json.loads((path / PROGRESS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as exc:
            fault = f"{PROGRESS} cannot be read ({' '.join(str(exc).split())})"
    if progress is None:
        logger.warning("%s is damaged and is passed over: %s", path, fault)
        return None
    return Checkpoint(path, progress)


def newest(folder: Path, *, thorough: bool = True) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there are none at all.

    Args:
        folder: The run's folder.
        thorough: Whether every file is read.

    Raises:
        CheckpointError: There are some, but none is whole.
    """
    paths = numbered(folder)
    for path in reversed(paths):
        if (found := open_checkpoint(path, thorough=thorough)) is not None:
            return found
    if paths:
        raise CheckpointError(f"no checkpoint in {str(folder)!r} is whole; start anew with --overwrite")
    return None


def rotate(folder: Path, limit: int | None, *, keep: Collection[str] = ()) -> None:
    """Removes what is older than the last ``limit`` checkpoints, but for those to ``keep``.

    Damaged ones do not count as kept, so that there is always a whole one where one was written.
    """
    if not limit:
        return
    kept: set[str] = set()
    paths = numbered(folder)
    while paths and len(kept) < limit:
        path = paths.pop()
        if open_checkpoint(path, thorough=False) is not None:
            kept.add(path.name)
    if kept:
        for path in paths:
            if path.name not in keep:
                remove(path)


def remove(path: Path) -> None:
    """Removes a checkpoint; one that is killed meanwhile leaves nothing that looks like one."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    try:
        os.replace(path, aside)
    except OSError:
        aside = path
    shutil.rmtree(aside, ignore_errors=True)
