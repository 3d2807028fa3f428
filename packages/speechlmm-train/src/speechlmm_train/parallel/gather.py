"""Whole tensors of a model that is spread over processes, one at a time.

What is trained in half precision by DeepSpeed has a copy in full precision, which is what counts and what is given.
Weights that are saved through `gather` are thus the same however the training was spread.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def is_partitioned(tensor: Any) -> bool:
    """Whether DeepSpeed's stage 3 has spread a parameter over the processes."""
    return hasattr(tensor, "ds_id")


def gather(tensor: Any) -> Tensor:
    """The whole of a parameter or buffer. Every process must call it for the same tensors in the same order."""
    if isinstance(tensor, DTensor):
        spread: Any = tensor.detach()
        return spread.full_tensor()
    if is_partitioned(tensor):
        return _of_stage_3(tensor)
    if hasattr(tensor, "_hp_mapping") and tensor.dtype != torch.float32:
        from deepspeed.utils import safe_get_full_fp32_param

        full = safe_get_full_fp32_param(tensor)
        return tensor.detach() if full is None else full
    return tensor.detach()


def _of_stage_3(parameter: Any) -> Tensor:
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad and hasattr(parameter, "_z3_optimizer"):
        full = safe_get_full_fp32_param(parameter)
        if full is not None:
            return full
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()
