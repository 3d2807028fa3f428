"""Fetches a checkpoint into a folder: only what is needed, as safetensors, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from speechlmm_core.checkpoint.atomic import sync
from speechlmm_core.checkpoint.hub_errors import HubOfflineError, first_line
from speechlmm_core.checkpoint.source import WEIGHT_SUFFIXES
from speechlmm_core.checkpoint.weights import WEIGHT_FILES
from speechlmm_core.errors import CheckpointError
from speechlmm_train.download.hub import Repository, list_repository
from speechlmm_train.download.job import MARKER, Job, Say, amount, files_beside_weights, folder_size, weights_entry
from speechlmm_train.download.wanted import Wanted

WORK = ".downloads"
"""Folder below the root for what has begun to be downloaded."""

ANEW = "move it away or delete it to fetch it anew, or choose another folder with --into"


def download(wanted: Wanted, root: Path, say: Say, *, progress: bool = True) -> Path:
    """Fetches a checkpoint to ``<root>/<name>``; nothing where it is there already.

    What is there is compared with the hub by the hashes of the files that it was made from, not by the commit. Without
    a network, or where the hub refuses, it is taken as it is.

    Args:
        wanted: Which one, and what of it.
        root: The folder that `$PRETRAINED_COMPONENTS` names.
        say: Takes lines for the user.
        progress: Whether to show progress bars.

    Raises:
        CheckpointError: It cannot be had, arrived damaged, or another folder stands in its place.
        OSError: The connection broke, or the disk is full.
    """
    target = root / wanted.name
    if Path(wanted.name).suffix in WEIGHT_SUFFIXES:
        if not target.exists():
            raise CheckpointError(
                f"{wanted.name!r} is a file and not on the hub; get it from "
                f"{wanted.by_hand or 'where it is published'}, and put it at {str(target)!r}"
            )
        check_given(target)
        say(f"{wanted.name}: there already")
        return target
    if target.exists():
        say(f"{wanted.name}: there already, {_compared(target, _present(target, wanted), wanted)}")
        return target
    repository = list_repository(wanted.name)
    with _working_folder(root, wanted) as work:
        Job(wanted, repository, work, say, progress=progress).run()
        target.parent.mkdir(parents=True, exist_ok=True)
        for file in (work / "ready").iterdir():
            sync(file)
        os.replace(work / "ready", target)
        sync(target.parent)
    say(f"{wanted.name}: done, {amount(folder_size(target))} in {target}")
    return target


def check_given(path: Path) -> None:
    """Looks at a checkpoint that the user put in its place.

    Raises:
        CheckpointError: It is an empty file.
    """
    if path.is_file() and path.stat().st_size == 0:
        raise CheckpointError(f"{str(path)!r} is empty (0 bytes), expected a file of weights; get it again")


@dataclass(frozen=True)
class _Present:
    """What a downloaded folder says that it was made from."""

    commit: str
    keys: dict[str, str]
    """The hub's files, with the hashes that it knows them by."""


def _present(target: Path, wanted: Wanted) -> _Present:
    """What is there, when it is what would be downloaded, and complete."""
    there = f"{str(target)!r} is there already"
    try:
        marker = json.loads((target / MARKER).read_text(encoding="utf-8"))
        sizes = {name: entry["size"] for name, entry in marker["files"].items()}
        keys = {name: entry.get("sha256") or entry["git_sha1"] for name, entry in marker["source"].items()}
        found = _Present(marker["commit"][:12], keys)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{there}, and not from this command; {ANEW}") from exc
    for key, value in wanted.identity().items():
        if marker.get(key) != value:
            raise CheckpointError(f"{there}, with the {key} {marker.get(key)!r} where this would be {value!r}; {ANEW}")
    for name, size in sizes.items():
        if not (target / name).is_file() or (target / name).stat().st_size != size:
            raise CheckpointError(f"{there}, but its {name} is damaged; {ANEW}")
    return found


def _compared(target: Path, present: _Present, wanted: Wanted) -> str:
    """What a folder is in comparison to the hub, in words.

    Raises:
        CheckpointError: A file that it was made from is another on the hub today.
    """
    at = f"at commit {present.commit}"
    try:
        repository = list_repository(wanted.name)
    except (CheckpointError, ConnectionError) as exc:
        # That a revision is not asked for without a network is no news; that the hub refuses it is.
        if wanted.revision and isinstance(exc, HubOfflineError | ConnectionError):
            return at
        return f"{at}; it could not be compared with the hub: {first_line(exc)}"
    difference = _difference(present, repository, wanted)
    theirs = repository.commit[:12]
    if difference is not None:
        raise CheckpointError(
            f"{str(target)!r} is there already, {at}, but {difference} at the hub's commit {theirs}; use it as it is, "
            f"or {ANEW}"
        )
    entry = weights_entry(repository).name if wanted.needs_weights else None
    if entry is not None and entry not in present.keys:
        return f"{at}; the hub has since added {entry}"
    return at if theirs == present.commit else f"{at}; the hub's {theirs} has the same files"


def _difference(present: _Present, repository: Repository, wanted: Wanted) -> str | None:
    """What is not on the hub as it was when it was downloaded."""
    needed = {file.name for file in files_beside_weights(repository, wanted)}
    if wanted.needs_weights and present.keys.keys().isdisjoint(WEIGHT_FILES):
        # Otherwise what is there came of another of these files, which is compared below like any other.
        needed.add(weights_entry(repository).name)
    for name in sorted(needed | set(present.keys)):
        if name not in present.keys:
            return f"{name} is new"
        if name not in repository.files:
            return f"{name} is gone"
        if repository.files[name].key != present.keys[name]:
            return f"{name} is another"
    return None


@contextmanager
def _working_folder(root: Path, wanted: Wanted) -> Iterator[Path]:
    """A folder for one download that outlives an interruption, and is removed when the block ends without an error."""
    slug = wanted.name.replace("/", "--")
    identity = hashlib.sha256(json.dumps(wanted.identity()).encode()).hexdigest()[:12]
    work = root / WORK / slug / identity
    work.mkdir(parents=True, exist_ok=True)
    with (work.parent / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise CheckpointError(f"{wanted.name!r} is being downloaded by another process; wait for it") from exc
        for other in work.parent.iterdir():
            if other.is_dir() and other != work:
                shutil.rmtree(other)  # of another selection
        yield work
        shutil.rmtree(work.parent)
    with suppress(OSError):  # others may be at work there
        (root / WORK).rmdir()
