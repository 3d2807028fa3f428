"""Log-sum-exp and maxima of a large head's logits in chunks of positions: no memory for positions x vocabulary.

Shapes: M positions, C positions of one chunk, V vocabulary, D hidden.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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
    chunks = _chunks(hidden, weight, chunk_size)
    out, _ = _ChunkedLogSumExp.apply(hidden, weight, chunks, False)  # pyright: ignore[reportGeneralTypeIssues]
    return out


def chunked_argmax_logsumexp(hidden: Tensor, weight: Tensor, *, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """`chunked_argmax` and `chunked_logsumexp` from the same logits; only the latter has a gradient.

    Returns:
        (M,) int64 and (M,) fp32 (fp64 for fp64 inputs).
    """
    chunks = _chunks(hidden, weight, chunk_size)
    out, best = _ChunkedLogSumExp.apply(hidden, weight, chunks, True)  # pyright: ignore[reportGeneralTypeIssues]
    return best, out


def chunked_argmax(hidden: Tensor, weight: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """``argmax(hidden @ weight.T, dim=1)``.

    Args:
        hidden: (M, D).
        weight: (V, D).
        chunk_size: As for `chunked_logsumexp`.

    Returns:
        (M,) int64.
    """
    chunks = _chunks(hidden, weight, chunk_size)
    best = torch.empty(hidden.shape[0], dtype=torch.int64, device=hidden.device)
    with torch.no_grad(), _without_autocast(hidden.device.type):
        table = weight.to(chunks.dtype).t()
        for start in range(0, hidden.shape[0], chunks.size):
            part = slice(start, start + chunks.size)
            best[part] = (hidden[part].to(chunks.dtype) @ table).argmax(dim=1)  # (C,)
    return best


@dataclass(frozen=True)
class _Chunks:
    size: int
    """Positions at a time."""
    dtype: torch.dtype
    """Dtype of the products."""


def _chunks(hidden: Tensor, weight: Tensor, chunk_size: int | None) -> _Chunks:
    size = chunk_size or max(1, CHUNK_ELEMENTS // max(1, weight.shape[0]))
    device = hidden.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return _Chunks(size, torch.get_autocast_dtype(device) if autocast else weight.dtype)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """Nothing to switch off on devices that have none (`meta`)."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class _ChunkedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, chunks: _Chunks, argmax: bool) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        out = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
        best = torch.empty(hidden.shape[0] if argmax else 0, dtype=torch.int64, device=hidden.device)
        with _without_autocast(hidden.device.type):
            table = weight.to(chunks.dtype).t()
            for start in range(0, hidden.shape[0], chunks.size):
                part = slice(start, start + chunks.size)
                logits = (hidden[part].to(chunks.dtype) @ table).to(wide)  # (C, V)
                out[part] = torch.logsumexp(logits, dim=1)  # (C,)
                if argmax:
                    best[part] = logits.argmax(dim=1)  # (C,)
        ctx.save_for_backward(hidden, weight, out)
        ctx.mark_non_differentiable(best)
        ctx.chunks = chunks
        return out, best

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad = grad_outputs[0]
        hidden, weight, out = ctx.saved_tensors
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight, dtype=out.dtype) if ctx.needs_input_grad[1] else None
        with _without_autocast(hidden.device.type):
            table = weight.to(ctx.chunks.dtype)
            for start in range(0, hidden.shape[0], ctx.chunks.size):
                part = slice(start, start + ctx.chunks.size)
                x = hidden[part].to(ctx.chunks.dtype)  # (C, D)
                share = (x @ table.t()).to(out.dtype).sub_(out[part, None]).exp_().mul_(grad[part, None])  # (C, V)
                share = share.to(ctx.chunks.dtype)
                if hidden_grad is not None:
                    hidden_grad[part] = (share @ table).to(hidden.dtype)  # (C, D)
                if weight_grad is not None:
                    weight_grad += share.t() @ x  # (V, D)
        return hidden_grad, None if weight_grad is None else weight_grad.to(weight.dtype), None, None
