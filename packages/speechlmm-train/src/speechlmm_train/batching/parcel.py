"""Sends a micro-batch from a data worker to its process as one tensor.

Every tensor that goes through a worker's queue is a file descriptor of its own, for which the two processes connect and
identify themselves anew: some milliseconds a micro-batch, however small its tensors are. So they are laid into one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes; no smaller than any element, so that each tensor can be looked at where it lies."""


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def end(self) -> int:
        """The byte after it."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Parcel:
    """A micro-batch whose tensors lie in one."""

    content: Any
    """What was wrapped, with a `Slot` for each tensor."""
    data: Tensor
    """All tensors' bytes."""

    def pin_memory(self) -> Parcel:
        """The same in page-locked memory; torch's loader asks for it."""
        return Parcel(self.content, self.data.pin_memory())

    def open(self) -> Any:
        """What was wrapped; the tensors are views of the one."""
        return _map(self.content, Slot, self._view)

    def _view(self, slot: Slot) -> Tensor:
        return self.data[slot.start : slot.end].view(slot.dtype).view(slot.shape)


def wrap(batch: Any) -> Parcel:
    """Lays the tensors of nested dicts, lists and tuples into one."""
    tensors: list[Tensor] = []
    slots: list[Slot] = []

    def place(tensor: Tensor) -> Slot:
        start = -(-slots[-1].end // ALIGNMENT) * ALIGNMENT if slots else 0
        tensors.append(tensor)
        slots.append(Slot(start, tuple(tensor.shape), tensor.dtype))
        return slots[-1]

    content = _map(batch, Tensor, place)
    data = torch.empty(slots[-1].end if slots else 0, dtype=torch.uint8)
    for tensor, slot in zip(tensors, slots, strict=True):
        data[slot.start : slot.end] = tensor.contiguous().reshape(-1).view(torch.uint8)
    return Parcel(content, data)


def _map(value: Any, kind: type, function: Any) -> Any:
    """The same structure with the function's results in the places of one kind of leaves."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(entry, kind, function) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map(entry, kind, function) for entry in value)
    return value
