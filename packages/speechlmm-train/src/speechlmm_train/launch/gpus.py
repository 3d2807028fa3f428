"""How many processes a run has on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def num_processes(asked: int | Literal["auto"]) -> int:
    """What `training.num_processes` stands for: `auto` is one for each GPU, and one where there is none.

    torch is imported only where a driver is there; it knows of `CUDA_VISIBLE_DEVICES` and of partitioned GPUs.
    """
    if asked != "auto":
        return asked
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return 1
    import torch

    return max(1, torch.cuda.device_count())
