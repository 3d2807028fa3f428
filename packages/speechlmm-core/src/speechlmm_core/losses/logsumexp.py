"""Log-sum-exp of a large head's logits in chunks of positions; memory does not grow with positions x vocabulary.

Shapes: M positions, C positions of one chunk, V vocabulary, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from speechlmm_core.losses.chunked_ce import CHUNK_ELEMENTS


def chunked_logsumexp(hidden: Tensor, weight: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """``logsumexp(hidden @ weight.T, dim=1)``, whose logits are computed again in the backward pass.

    Args:
        hidden: (M, D).
        weight: (V, D).
        chunk_size: Positions at a time; by default as many as give `CHUNK_ELEMENTS` logits.

    Returns:
        (M,) fp32 (fp64 for fp64 inputs).
    """
    size = chunk_size or max(1, CHUNK_ELEMENTS // max(1, weight.shape[0]))
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return _ChunkedLogSumExp.apply(hidden, weight, size, dtype)  # pyright: ignore[reportReturnType]


class _ChunkedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, chunk_size: int, dtype: torch.dtype) -> Tensor:
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        out = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            table = weight.to(dtype).t()
            for start in range(0, hidden.shape[0], chunk_size):
                part = slice(start, start + chunk_size)
                out[part] = torch.logsumexp((hidden[part].to(dtype) @ table).to(wide), dim=1)  # (C,)
        ctx.save_for_backward(hidden, weight, out)
        ctx.chunk_size, ctx.dtype = chunk_size, dtype
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grad_outputs
        hidden, weight, out = ctx.saved_tensors
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight, dtype=out.dtype) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            table = weight.to(ctx.dtype)
            for start in range(0, hidden.shape[0], ctx.chunk_size):
                part = slice(start, start + ctx.chunk_size)
                x = hidden[part].to(ctx.dtype)  # (C, D)
                share = (x @ table.t()).to(out.dtype).sub_(out[part, None]).exp_().mul_(grad[part, None])  # (C, V)
                share = share.to(ctx.dtype)
                if hidden_grad is not None:
                    hidden_grad[part] = (share @ table).to(hidden.dtype)  # (C, D)
                if weight_grad is not None:
                    weight_grad += share.t() @ x  # (V, D)
        return hidden_grad, None if weight_grad is None else weight_grad.to(weight.dtype), None, None
