"""Writes a selection of a file's tensors as safetensors.

A safetensors file is copied byte range by byte range, so that memory does not grow with it and torch is not needed; the
format is eight bytes with the header's length, a header in JSON, and the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from speechlmm_core.checkpoint.atomic import atomic_write
from speechlmm_core.checkpoint.torch_file import read_torch_file
from speechlmm_core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 22
_LONGEST_HEADER = 100 << 20  # as in the reference implementation

Wants = Callable[[str], bool]


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header, and where the tensors' bytes begin.

    Raises:
        CheckpointError: It is no safetensors file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{str(path)!r} is no safetensors file ({exc})") from exc
    if max(ends, default=0) != size - 8 - length:
        raise CheckpointError(f"{str(path)!r} is cut off")
    return header, 8 + length


def tensor_names(path: Path) -> list[str]:
    """The names of a safetensors file's tensors."""
    return [name for name in read_header(path)[0] if name != "__metadata__"]


def select_tensors(source: Path, target: Path, wants: Wants) -> tuple[list[str], str]:
    """Copies the wanted tensors of a safetensors file.

    Returns:
        Their names, and the new file's SHA-256.

    Raises:
        CheckpointError: It is no safetensors file.
    """
    header, start = read_header(source)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__" and wants(name)}
    ordered = sorted(entries, key=lambda name: entries[name]["data_offsets"])
    new: dict[str, Any] = {"__metadata__": header["__metadata__"]} if "__metadata__" in header else {}
    place = 0
    for name in ordered:
        first, last = entries[name]["data_offsets"]
        new[name] = {**entries[name], "data_offsets": [place, place + last - first]}
        place += last - first
    text = json.dumps(new, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with atomic_write(target) as temporary, source.open("rb") as old, temporary.open("wb") as file:
        for chunk in (len(text).to_bytes(8, "little"), text):
            digest.update(chunk)
            file.write(chunk)
        for name in ordered:
            first, last = entries[name]["data_offsets"]
            old.seek(start + first)
            _copy(old, file, last - first, digest)
    return ordered, digest.hexdigest()


def convert_pickle(source: Path, target: Path, wants: Wants) -> tuple[list[str], str]:
    """Writes the wanted tensors of a PyTorch file as safetensors; no code in it is run.

    Returns:
        Their names, and the new file's SHA-256.

    Raises:
        CheckpointError: It is damaged, or holds anything but tensors by name.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in read_torch_file(source).items():
        if wants(name):
            shared = tensor.untyped_storage().data_ptr() in seen
            seen.add(tensor.untyped_storage().data_ptr())
            tensors[name] = tensor.clone() if shared else tensor.contiguous()
    with atomic_write(target) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    return sorted(tensors), file_sha256(target)


def file_sha256(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_sha1(path: Path) -> str:
    """A file's hash as git computes it, by which the hub knows small files."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _copy(old: BinaryIO, new: BinaryIO, count: int, digest: Any) -> None:
    while count:
        chunk = old.read(min(count, _CHUNK))
        if not chunk:
            raise CheckpointError(f"{os.fspath(old.name)!r} is cut off")
        digest.update(chunk)
        new.write(chunk)
        count -= len(chunk)
