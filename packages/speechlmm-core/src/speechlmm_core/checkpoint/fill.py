"""Puts values into parameters that may be spread over processes.

FSDP's are `DTensor`s, of which each process has a part. DeepSpeed's stage 3 leaves an empty tensor in each parameter,
with methods that gather and spread it; it is not imported here. All processes must fill the same tensors in turn, each
with the whole value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def full_shape(tensor: Any) -> torch.Size:
    """The shape of the whole tensor."""
    return getattr(tensor, "ds_shape", tensor.shape)


def is_spread(tensor: Any) -> bool:
    """Whether this process has only a part of a tensor."""
    return isinstance(tensor, DTensor) or hasattr(tensor, "ds_id")


@torch.no_grad()
def whole(tensor: Any) -> Tensor:
    """The whole value of a parameter or buffer, of which this process may have a part."""
    if isinstance(tensor, DTensor):
        spread: Any = tensor.detach()
        return spread.full_tensor()
    if not hasattr(tensor, "ds_id"):
        return tensor.detach()
    tensor.all_gather(param_list=[tensor])
    value = tensor.data.clone()
    tensor.partition(param_list=[tensor], has_been_updated=False)
    return value


@torch.no_grad()
def fill(target: Any, value: Tensor) -> None:
    """Copies a whole value into a parameter or buffer, or this process's part of it."""
    if isinstance(target, DTensor):
        own = value.to(device=target.device, dtype=target.dtype)
        target.copy_(distribute_tensor(own, target.device_mesh, target.placements, src_data_rank=None))
    elif hasattr(target, "ds_id"):
        target.all_gather(param_list=[target])
        target.data.copy_(value)
        target.partition(param_list=[target], has_been_updated=True)
    else:
        target.copy_(value)
