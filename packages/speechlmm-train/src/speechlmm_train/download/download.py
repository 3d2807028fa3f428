"""Fetches a checkpoint into a folder: only what is needed, as safetensors, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from speechlmm_core.checkpoint.atomic import sync, write_text
from speechlmm_core.checkpoint.source import WEIGHT_SUFFIXES
from speechlmm_core.checkpoint.weights import WEIGHT_FILES, read_shards
from speechlmm_core.errors import CheckpointError
from speechlmm_train.download.hub import RemoteFile, Repository, fetch, list_repository
from speechlmm_train.download.tensors import convert_pickle, file_sha256, select_tensors, tensor_names
from speechlmm_train.download.wanted import Wanted

MARKER = "speechlmm_download.json"
"""What a downloaded folder says of itself."""

WORK = ".downloads"
"""Folder below the root for what has begun to be downloaded."""

Say = Callable[[str], None]


def download(wanted: Wanted, root: Path, say: Say, *, progress: bool = True) -> Path:
    """Fetches a checkpoint to ``<root>/<name>``; nothing where it is there already.

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
        if target.exists():
            say(f"{wanted.name}: there already")
            return target
        raise CheckpointError(
            f"{wanted.name!r} is a file and not on the hub; get it from "
            f"{wanted.by_hand or 'where it is published'}, and put it at {str(target)!r}"
        )
    repository = list_repository(wanted.name)
    if target.exists():
        _check_same(target, repository, wanted)
        say(f"{wanted.name}: there already, at commit {repository.commit[:12]}")
        return target
    with _working_folder(root, repository, wanted) as work:
        _Job(wanted, repository, work, say, progress=progress).run()
        target.parent.mkdir(parents=True, exist_ok=True)
        for file in (work / "ready").iterdir():
            sync(file)
        os.replace(work / "ready", target)
        sync(target.parent)
    say(f"{wanted.name}: done, {_amount(_size(target))} in {target}")
    return target


class _Job:
    """One download, step by step; a step whose result lies in `ready` is not done again."""

    def __init__(self, wanted: Wanted, repository: Repository, work: Path, say: Say, *, progress: bool) -> None:
        self.wanted, self.repository, self.say, self.progress = wanted, repository, say, progress
        self.source, self.ready = work / "source", work / "ready"
        self.ready.mkdir(parents=True, exist_ok=True)
        self.sha256: dict[str, str] = {}
        self.sources: dict[str, RemoteFile] = {}
        self.alone = False

    def run(self) -> None:
        """Fetches, selects, and writes the marker."""
        files = self.repository.files
        small = [
            file
            for name, file in files.items()
            if "/" not in name and any(fnmatchcase(name, pattern) for pattern in self.wanted.patterns)
        ]
        absent = [name for name in self.wanted.patterns if not set("*?[") & set(name) and name not in files]
        if "config.json" in absent:
            raise CheckpointError(f"{self.repository.name!r} holds no config.json; it is no checkpoint of transformers")
        index, shards = self._shards() if self.wanted.needs_weights else (None, [])
        self.alone = len(shards) == 1
        self._announce([*small, *shards])
        for file in small:
            self._fetch(file).replace(self.ready / file.name)
        self._write_weights(index, shards)
        self._write_marker()

    def _shards(self) -> tuple[Path | None, list[RemoteFile]]:
        """The index of the weights, where they have one, and the weight files that hold anything needed."""
        files = self.repository.files
        name = next((name for name in WEIGHT_FILES if name in files), None)
        if name is None:
            raise CheckpointError(f"{self.repository.name!r} holds no weights; expected {', '.join(WEIGHT_FILES)}")
        if not name.endswith(".json"):
            return None, [files[name]]
        index = self._fetch(files[name])
        read_shards(index)
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({file for tensor, file in places.items() if self.wanted.wants(tensor)})
        lacking = [shard for shard in shards if shard not in files]
        if lacking:
            raise CheckpointError(f"{self.repository.name!r} lacks {', '.join(lacking)}, which its {name} names")
        return index, [files[shard] for shard in shards]

    def _announce(self, files: list[RemoteFile]) -> None:
        left = sum(file.size for file in files if not (self.ready / self._target_name(file)).exists())
        names = ", ".join(file.name for file in files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
        self.say(f"{self.wanted.name}: {_amount(left)} to fetch at commit {self.repository.commit[:12]} ({names})")
        free = shutil.disk_usage(self.ready).free + (_size(self.source) if self.source.exists() else 0)
        if left > free:
            raise OSError(errno.ENOSPC, f"{_amount(left)} to fetch and {_amount(free)} free", str(self.ready))

    def _target_name(self, file: RemoteFile) -> str:
        """What a fetched file is called in the end."""
        if not file.name.endswith((".bin", ".safetensors")):
            return file.name
        if self.alone:
            return "model.safetensors"
        return file.name.removeprefix("pytorch_").removesuffix(".bin").removesuffix(".safetensors") + ".safetensors"

    def _fetch(self, file: RemoteFile) -> Path:
        path, self.sha256[file.name] = fetch(self.repository, file, self.source, progress=self.progress)
        self.sources[file.name] = file
        return path

    def _write_weights(self, index: Path | None, shards: list[RemoteFile]) -> None:
        places: dict[str, str] = {}
        written: list[str] = []
        for shard in shards:
            self.sources[shard.name] = shard
            name = self._target_name(shard)
            if not (self.ready / name).exists():
                source = self._fetch(shard)
                self._write_shard(source, self.ready / name)
                source.unlink(missing_ok=True)
            tensors = tensor_names(self.ready / name)
            places.update(dict.fromkeys(tensors, name))
            written.append(name)
        if shards and not places:
            raise CheckpointError(
                f"{self.repository.name!r} holds no tensor that the component needs; it is another architecture's"
            )
        if shards and not self.alone:
            total = sum((self.ready / name).stat().st_size for name in written)
            text = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2, sort_keys=True)
            write_text(self.ready / "model.safetensors.index.json", text)
        if index is not None:
            index.unlink(missing_ok=True)

    def _write_shard(self, source: Path, target: Path) -> None:
        if source.suffix != ".safetensors":
            _, self.sha256[target.name] = convert_pickle(source, target, self.wanted.wants)
        elif all(map(self.wanted.wants, tensor_names(source))):
            self.sha256[target.name] = self.sha256[source.name]
            os.replace(source, target)
        else:
            _, self.sha256[target.name] = select_tensors(source, target, self.wanted.wants)

    def _write_marker(self) -> None:
        files = {
            path.name: {
                "size": path.stat().st_size,
                "sha256": self.sha256.get(path.name) or file_sha256(path),
            }
            for path in sorted(self.ready.iterdir())
            if path.name != MARKER
        }
        sources = {
            name: {"size": file.size, **({"sha256": file.sha256} if file.sha256 else {"git_sha1": file.git_sha1})}
            for name, file in sorted(self.sources.items())
        }
        marker = {**_identity(self.repository, self.wanted), "source": sources, "files": files}
        write_text(self.ready / MARKER, json.dumps(marker, indent=2) + "\n")


def _identity(repository: Repository, wanted: Wanted) -> dict[str, Any]:
    """What tells one download from another."""
    tensors = [{"keep": list(part.keep), "skip": list(part.skip)} for part in wanted.parts]
    return {
        "repo": repository.name,
        "revision": repository.revision,
        "commit": repository.commit,
        "tensors": [part for i, part in enumerate(tensors) if part not in tensors[:i]],
        "patterns": wanted.patterns,
    }


def _check_same(target: Path, repository: Repository, wanted: Wanted) -> None:
    advice = "move it away or delete it to fetch it anew, or choose another folder with --into"
    try:
        marker = json.loads((target / MARKER).read_text(encoding="utf-8"))
        files = {name: entry["size"] for name, entry in marker["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{str(target)!r} is there already, and not from this command; {advice}") from exc
    for key, value in _identity(repository, wanted).items():
        if marker.get(key) != value:
            raise CheckpointError(
                f"{str(target)!r} is there already, with the {key} {marker.get(key)!r} where this would be {value!r}; "
                f"{advice}"
            )
    for name, size in files.items():
        if not (target / name).is_file() or (target / name).stat().st_size != size:
            raise CheckpointError(f"{str(target)!r} is there already, but its {name} is damaged; {advice}")


@contextmanager
def _working_folder(root: Path, repository: Repository, wanted: Wanted) -> Iterator[Path]:
    """A folder for one download that outlives an interruption, and is removed when the block ends without an error."""
    slug = wanted.name.replace("/", "--")
    identity = hashlib.sha256(json.dumps(_identity(repository, wanted)).encode()).hexdigest()[:12]
    work = root / WORK / slug / identity
    work.mkdir(parents=True, exist_ok=True)
    with (work.parent / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise CheckpointError(f"{wanted.name!r} is being downloaded by another process; wait for it") from exc
        for other in work.parent.iterdir():
            if other.is_dir() and other != work:
                shutil.rmtree(other)  # of another commit or selection
        yield work
        shutil.rmtree(work.parent)
    with suppress(OSError):  # others may be at work there
        (root / WORK).rmdir()


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _amount(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
