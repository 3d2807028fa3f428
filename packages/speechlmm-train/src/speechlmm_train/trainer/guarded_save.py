"""Words what goes wrong while a checkpoint is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from speechlmm_core.errors import CheckpointError

_WRITER = ("PytorchStreamWriter", "inline_container", "iostream", "write")


@contextmanager
def guarded_save(target: Path) -> Iterator[None]:
    """Words what goes wrong while saving; what was saved before stays valid.

    Raises:
        CheckpointError: The disk is full or read-only.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as exc:
        # torch words a full disk as a RuntimeError of its writer; any other, such as a GPU out of memory, is not ours.
        if isinstance(exc, RuntimeError) and not any(word in str(exc) for word in _WRITER):
            raise
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc).splitlines()[0]
        raise CheckpointError(
            f"cannot save {str(target)!r}: {reason}; earlier checkpoints are still valid: free some space and go on "
            "with --resume"
        ) from exc
