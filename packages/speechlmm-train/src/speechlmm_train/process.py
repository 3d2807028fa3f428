"""Settings of the process in which a model is trained on the CPU. Imports no torch: they must come before it."""

from __future__ import annotations

import ctypes
import os

from speechlmm_train.parallel.quiet import quiet_imports

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES = 1 << 30
SPIN_COUNT = "1000"


def prepare_process() -> None:
    """Keeps freed memory, lets waiting threads sleep soon, and has libraries that are not used say nothing.

    What the user set in the environment stays.
    """
    keep_freed_memory()
    quiet_imports()
    # A thread that is done early spins by default, and takes the core from whoever it waits for: the data worker, or
    # its own team. With as many threads as cores that slows a step several times over.
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed blocks instead of returning them to the system at once.

    Training on the CPU allocates and frees the same large blocks at every step; by default each one is mapped anew,
    and the kernel clears its pages again. Returns whether the C library took the settings.
    """
    try:
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)) and bool(libc.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES))
    except (OSError, AttributeError):
        return False
