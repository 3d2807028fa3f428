"""Writes tensors to safetensors files one after the other, so that no more than one file's worth is held at a time.

A model that is spread over processes is gathered one tensor at a time: every process walks through the same tensors,
and one of them writes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from speechlmm_core.errors import OutOfStepError

Gather = Callable[[Tensor], Tensor]
"""Makes a whole tensor of the part that this process has. Every process calls it, for the same tensors in turn."""

MAX_SHARD_SIZE = "5GB"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def as_it_is(tensor: Tensor) -> Tensor:
    """The gathering of a model that lies whole in one process."""
    return tensor


def number_of_bytes(size: int | str) -> int:
    """Bytes of a size such as ``5GB``.

    Raises:
        ValueError: It is none.
    """
    if isinstance(size, int):
        return size
    found = re.fullmatch(r"([0-9.]+) *([A-Z]*)", size.strip().upper())
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{size!r} is not a size; expected a number with B, KB, MB, GB or TB")
    return int(float(found[1]) * _UNITS[found[2]])


class ShardWriter:
    """Writes ``<stem>.safetensors``, or ``<stem>-00001-of-00003.safetensors`` and so on with an index.

    Args:
        folder: Where to.
        stem: What the files' names begin with.
        max_shard_size: Size of a file at most; a tensor that is larger has one of its own.
    """

    def __init__(self, folder: Path, stem: str = "model", *, max_shard_size: int | str = MAX_SHARD_SIZE) -> None:
        self.folder, self.stem = folder, stem
        self.names: list[str] = []
        self.dtype: torch.dtype | None = None
        """Of the first tensor of real numbers."""
        self._limit = number_of_bytes(max_shard_size)
        self._pending: dict[str, Tensor] = {}
        self._size = self._total = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes a tensor; it must not change before the next one is added.

        Raises:
            OSError: The disk is full or read-only.
        """
        size = tensor.numel() * tensor.element_size()
        if self.dtype is None and tensor.is_floating_point():
            self.dtype = tensor.dtype
        if self._pending and self._size + size > self._limit:
            self._flush()
        self._pending[name] = tensor.detach().to("cpu").contiguous()
        self.names.append(name)
        self._size += size
        self._total += size

    def close(self) -> None:
        """Writes what is left, and the index where there are several files.

        Raises:
            OSError: The disk is full or read-only.
        """
        if self._pending or not self._shards:
            self._flush()
        count = len(self._shards)
        if count == 1:
            os.replace(self._file(1), self.folder / f"{self.stem}.safetensors")
            return
        files: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            final = f"{self.stem}-{number:05d}-of-{count:05d}.safetensors"
            os.replace(self._file(number), self.folder / final)
            files |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total}, "weight_map": files}
        (self.folder / f"{self.stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.stem}-{number:05d}.safetensors"

    def _flush(self) -> None:
        self._shards.append(list(self._pending))
        try:
            save_file(self._pending, self._file(len(self._shards)), metadata={"format": "pt"})
        except SafetensorError as exc:
            raise OSError(str(exc)) from exc
        self._pending, self._size = {}, 0


def stream(
    tensors: Iterable[tuple[str, Tensor]], writer: ShardWriter | None, gather: Gather = as_it_is
) -> Exception | None:
    """Gathers tensors one by one, and writes them where there is a writer.

    What goes wrong while writing is given back at the end and not raised at once: the other processes go on with the
    tensors that follow, and would wait for this one for ever.

    Args:
        tensors: The same names in the same order in every process.
        writer: Writes and closes; None in a process that only takes part.
        gather: Makes a whole tensor of this process's part.

    Raises:
        OutOfStepError: A tensor cannot be gathered. The other processes may be waiting for it, so that nothing can be
            agreed on with them any more.
    """
    fault: Exception | None = None
    walk = iter(tensors)
    last = ""
    while True:
        try:
            if (following := next(walk, None)) is None:
                break
            name, whole = following[0], gather(following[1])
        except Exception as exc:
            which = f"the tensor after {last!r}" if last else "the first tensor"
            raise OutOfStepError(f"cannot gather {which}: {' '.join(str(exc).split()) or type(exc).__name__}") from exc
        last = name
        if writer is None or fault is not None:
            continue
        try:
            writer.add(name, whole)
        except Exception as exc:
            fault = exc
    if writer is not None and fault is None:
        try:
            writer.close()
        except Exception as exc:
            fault = exc
    return fault
