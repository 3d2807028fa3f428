"""One download, step by step, into a folder that outlives an interruption."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.checkpoint.weights import WEIGHT_FILES, read_shards
from speechlmm_core.errors import CheckpointError
from speechlmm_train.download.hub import RemoteFile, Repository, fetch
from speechlmm_train.download.tensors import convert_pickle, file_sha256, select_tensors, tensor_names
from speechlmm_train.download.wanted import Wanted

MARKER = "speechlmm_download.json"
"""What a downloaded folder says of itself."""

MADE = "made.json"
"""What a working folder says of the files that are ready: what of the hub's each was made from, and its SHA-256."""

Say = Callable[[str], None]


def files_beside_weights(repository: Repository, wanted: Wanted) -> list[RemoteFile]:
    """The files that are needed beside the weights."""
    return [
        file
        for name, file in repository.files.items()
        if "/" not in name and any(fnmatchcase(name, pattern) for pattern in wanted.patterns)
    ]


def weights_entry(repository: Repository) -> RemoteFile:
    """The file of the weights, or their index.

    Raises:
        CheckpointError: There is neither.
    """
    name = next((name for name in WEIGHT_FILES if name in repository.files), None)
    if name is None:
        raise CheckpointError(f"{repository.name!r} holds no weights; expected {', '.join(WEIGHT_FILES)}")
    return repository.files[name]


class Job:
    """One download; what lies in `ready` and was made from the hub's present file is not made again.

    Files on their way are kept by the hash of their content, so that another commit goes on with those it shares.
    """

    def __init__(self, wanted: Wanted, repository: Repository, work: Path, say: Say, *, progress: bool) -> None:
        self.wanted, self.repository, self.say, self.progress = wanted, repository, say, progress
        self.source, self.ready, self._made_file = work / "source", work / "ready", work / MADE
        self.ready.mkdir(parents=True, exist_ok=True)
        self.source.mkdir(exist_ok=True)
        self.made: dict[str, dict[str, str]] = {}
        if self._made_file.exists():
            self.made = json.loads(self._made_file.read_text(encoding="utf-8"))
        current = {self._folder(file) for file in repository.files.values()}
        for old in set(self.source.iterdir()) - current:
            shutil.rmtree(old)
        self.sources: dict[str, RemoteFile] = {}
        self.places: dict[str, str] = {}
        self.alone = False

    def run(self) -> None:
        """Fetches, selects, and writes the marker.

        Raises:
            CheckpointError: The repository lacks what is needed, or it arrived damaged.
            OSError: The disk is or would be full.
        """
        if "config.json" in self.wanted.patterns and "config.json" not in self.repository.files:
            raise CheckpointError(f"{self.repository.name!r} holds no config.json; it is no checkpoint of transformers")
        small = files_beside_weights(self.repository, self.wanted)
        shards = self._shards() if self.wanted.needs_weights else []
        self.alone = len(shards) == 1
        self._announce([*small, *shards])
        for file in small:
            self._make(file, os.replace)
        self._write_weights(shards)
        self._write_marker({self._target_name(file) for file in [*small, *shards]})

    def _shards(self) -> list[RemoteFile]:
        """The weight files that hold anything needed."""
        entry = weights_entry(self.repository)
        if not entry.name.endswith(".json"):
            return [entry]
        index, _ = self._fetch(entry)
        read_shards(index)
        self.places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({file for tensor, file in self.places.items() if self.wanted.wants(tensor)})
        lacking = [shard for shard in shards if shard not in self.repository.files]
        if lacking:
            raise CheckpointError(f"{self.repository.name!r} lacks {', '.join(lacking)}, which its {entry.name} names")
        return [self.repository.files[shard] for shard in shards]

    def _announce(self, files: list[RemoteFile]) -> None:
        names = ", ".join(file.name for file in files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
        left = [file for file in files if not self._is_made(file)]
        size = sum(file.size for file in left)
        # Each file goes when its selection is written; until then, both are there.
        copy = max((file.size for file in left if self._is_copied(file)), default=0)
        self.say(f"{self.wanted.name}: {amount(size)} to fetch at commit {self.repository.commit[:12]} ({names})")
        free = shutil.disk_usage(self.ready).free + folder_size(self.source)
        if size + copy > free:
            beside = f", up to {amount(copy)} more to select from it" if copy else ""
            raise OSError(errno.ENOSPC, f"{amount(size)} to fetch{beside}, and {amount(free)} free", str(self.ready))

    def _is_copied(self, file: RemoteFile) -> bool:
        """Whether its tensors are, or may be, written to another file."""
        if file.name.endswith(".bin"):
            return True
        if not file.name.endswith(".safetensors"):
            return False
        if self.places:
            return not all(self.wanted.wants(tensor) for tensor, place in self.places.items() if place == file.name)
        return not self.wanted.needs_all

    def _target_name(self, file: RemoteFile) -> str:
        """What a fetched file is called in the end."""
        if not file.name.endswith((".bin", ".safetensors")):
            return file.name
        if self.alone:
            return "model.safetensors"
        return file.name.removeprefix("pytorch_").removesuffix(".bin").removesuffix(".safetensors") + ".safetensors"

    def _folder(self, file: RemoteFile) -> Path:
        """Where a file is fetched to: contents of one name may differ between commits."""
        return self.source / file.key[:16]

    def _fetch(self, file: RemoteFile) -> tuple[Path, str]:
        self.sources[file.name] = file
        return fetch(self.repository, file, self._folder(file), progress=self.progress)

    def _is_made(self, file: RemoteFile) -> bool:
        name = self._target_name(file)
        entry = self.made.get(name)
        made_from = {"source": file.name, "key": file.key}
        return entry is not None and made_from.items() <= entry.items() and (self.ready / name).exists()

    def _make(self, file: RemoteFile, write: Callable[[Path, Path], str | None]) -> Path:
        """The file that comes of one of the hub's, fetched and written unless it is ready."""
        target = self.ready / self._target_name(file)
        self.sources[file.name] = file
        if not self._is_made(file):
            source, sha256 = self._fetch(file)
            sha256 = write(source, target) or sha256
            self.made[target.name] = {"source": file.name, "key": file.key, "sha256": sha256}
            write_text(self._made_file, json.dumps(self.made))
            source.unlink(missing_ok=True)
        return target

    def _write_weights(self, shards: list[RemoteFile]) -> None:
        places: dict[str, str] = {}
        size = 0
        for shard in shards:
            path = self._make(shard, self._write_shard)
            places.update(dict.fromkeys(tensor_names(path), path.name))
            size += path.stat().st_size
        if self.wanted.needs_weights and not places:
            raise CheckpointError(
                f"{self.repository.name!r} holds no tensor that the component needs; it is another architecture's"
            )
        if shards and not self.alone:
            text = json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=2, sort_keys=True)
            write_text(self.ready / "model.safetensors.index.json", text)

    def _write_shard(self, source: Path, target: Path) -> str | None:
        """Writes what is needed of a file; its SHA-256, or None where all of it is."""
        if source.suffix != ".safetensors":
            return convert_pickle(source, target, self.wanted.wants)[1]
        if all(map(self.wanted.wants, tensor_names(source))):
            os.replace(source, target)
            return None
        return select_tensors(source, target, self.wanted.wants)[1]

    def _write_marker(self, made: set[str]) -> None:
        if self.places and not self.alone:
            made.add("model.safetensors.index.json")
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(self.ready.iterdir()):
            if path.name not in made:
                path.unlink()  # of another commit
                continue
            sha256 = self.made.get(path.name, {}).get("sha256") or file_sha256(path)
            files[path.name] = {"size": path.stat().st_size, "sha256": sha256}
        sources = {
            name: {"size": file.size, **({"sha256": file.sha256} if file.sha256 else {"git_sha1": file.git_sha1})}
            for name, file in sorted(self.sources.items())
        }
        identity = {**self.wanted.identity(), "commit": self.repository.commit}
        write_text(self.ready / MARKER, json.dumps({**identity, "source": sources, "files": files}, indent=2) + "\n")


def folder_size(folder: Path) -> int:
    """Bytes in a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def amount(size: int) -> str:
    """A number of bytes in words."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
