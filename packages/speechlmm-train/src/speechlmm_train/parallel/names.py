# pyright: strict
"""The ways to share a training among processes. Imports no torch."""

from __future__ import annotations

from typing import Literal

Parallel = Literal["auto", "ddp", "zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "fsdp2"]
"""`auto` is `ddp` with several processes, and nothing with one. `zero*` is DeepSpeed (Rajbhandari et al., 2020, arXiv
1910.02054), with optimiser states (and, in stage 3, weights) in the memory of the host for `*_offload`."""


def stage_of(parallel: str) -> int | None:
    """DeepSpeed's stage; None where it is not DeepSpeed."""
    return int(parallel[4]) if parallel.startswith("zero") else None
