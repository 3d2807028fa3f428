"""Which values a computation reads from its device: each read makes the host wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class CountedReads(TorchDispatchMode):
    """Counts single values read from the device, and refuses every other way to wait for it.

    On the meta device, where there are no values, each read gives ``value``; everything else that depends on values
    (boolean indices, `nonzero`, `unique`, copies to the host) fails there by itself. On CUDA, reads are real, and
    torch is told to fail on all other synchronisation.
    """

    def __init__(self, value: int = 0) -> None:
        super().__init__()
        self.value = value
        self.reads = 0
        self._mode: int | None = None

    def __enter__(self) -> CountedReads:
        if torch.cuda.is_available():
            self._mode = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        if self._mode is not None:
            torch.cuda.set_sync_debug_mode(self._mode)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Passes on what is computed, and counts what is read."""
        if func is not torch.ops.aten._local_scalar_dense.default:
            return func(*args, **(kwargs or {}))
        self.reads += 1
        if args[0].is_meta:
            return bool(self.value) if args[0].dtype == torch.bool else self.value
        if self._mode is None:
            return func(*args)
        torch.cuda.set_sync_debug_mode(self._mode)
        try:
            return func(*args)
        finally:
            torch.cuda.set_sync_debug_mode("error")
