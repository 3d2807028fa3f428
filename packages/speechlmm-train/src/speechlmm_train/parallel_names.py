# pyright: strict
"""The ways to share a training among processes. Imports no torch."""

from __future__ import annotations

from typing import Literal

Parallel = Literal["auto", "ddp", "zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "fsdp2"]
"""`auto` is `ddp` with several processes, and nothing with one. `zero*` is DeepSpeed (Rajbhandari et al., 2020, arXiv
1910.02054), with optimiser states (and, in stage 3, weights) in the memory of the host for `*_offload`."""

Mode = Literal["none", "ddp", "zero", "fsdp2"]
"""How the model is wrapped: as it is, in torch's DDP, in DeepSpeed's engine, or sharded in place by FSDP2."""


def stage_of(parallel: str) -> int | None:
    """DeepSpeed's stage; None where it is not DeepSpeed."""
    return int(parallel[4]) if parallel.startswith("zero") else None


def mode_of(parallel: str, world_size: int) -> Mode:
    """How a training's model is wrapped."""
    if stage_of(parallel) is not None:
        return "zero"
    if parallel == "fsdp2":
        return "fsdp2"
    return "ddp" if world_size > 1 else "none"
