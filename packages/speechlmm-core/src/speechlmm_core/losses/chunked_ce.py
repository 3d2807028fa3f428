"""Cross-entropy over a large vocabulary in chunks of positions: memory does not grow with positions x vocabulary.

The gradients are computed beside the loss, chunk by chunk, while a chunk's logits are there, and only scaled in the
backward pass; no logits are kept and none are computed twice.

Shapes: M positions, C positions of one chunk, V vocabulary, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Logits that a chunk holds by default (64 MiB in fp32)."""


@dataclass(frozen=True)
class _Options:
    chunk_size: int
    softcap: float | None
    label_smoothing: float
    compute_dtype: torch.dtype
    hidden_grad: bool
    weight_grad: bool


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk_size: int | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Sum of the cross-entropies of ``hidden @ weight.T`` against the targets.

    Args:
        hidden: (M, D) hidden states of the supervised positions; M may be 0.
        weight: (V, D) language-model head.
        targets: (M,) int64 token ids; negative ones are left out.
        chunk_size: Positions at a time; by default as many as give `CHUNK_ELEMENTS` logits.
        softcap: Logits z become ``softcap * tanh(z / softcap)`` (Gemma 2, arXiv:2408.00118).
        label_smoothing: Share of the target's mass spread over the vocabulary, as in `torch.nn.CrossEntropyLoss`.

    Returns:
        Scalar sum, fp32 (fp64 for fp64 inputs).
    """
    return chunked_cross_entropies(
        hidden, weight, targets, chunk_size=chunk_size, softcap=softcap, label_smoothing=label_smoothing
    )[0]


def chunked_cross_entropies(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk_size: int | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`chunked_cross_entropy`, and (M,) what each position adds to it, which has no gradient; 0 for those left out."""
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    training = torch.is_grad_enabled()
    options = _Options(
        chunk_size=chunk_size or max(1, CHUNK_ELEMENTS // max(1, weight.shape[0])),
        softcap=softcap,
        label_smoothing=label_smoothing,
        compute_dtype=torch.get_autocast_dtype(device) if autocast else weight.dtype,
        hidden_grad=training and hidden.requires_grad,
        weight_grad=training and weight.requires_grad,
    )
    return _ChunkedCrossEntropy.apply(hidden, weight, targets, options)  # pyright: ignore[reportReturnType]


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options) -> tuple[Tensor, Tensor]:
        ctx.options = options
        ctx.save_for_backward(hidden, weight, targets)
        loss, losses, *ctx.gradients = _loss_and_gradients(hidden, weight, targets, options)
        ctx.mark_non_differentiable(losses)
        return loss, losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        scale, _ = grad_outputs
        hidden, weight, targets = ctx.saved_tensors
        # The gradients are scaled where they lie and handed over, so a second pass has to compute them again.
        gradients = ctx.gradients or _loss_and_gradients(hidden, weight, targets, ctx.options)[2:]
        ctx.gradients = None
        hidden_grad, weight_grad = gradients
        if hidden_grad is not None:
            hidden_grad = hidden_grad.mul_(scale)
        if weight_grad is not None:
            weight_grad = weight_grad.mul_(scale).to(weight.dtype)
        return hidden_grad, weight_grad, None, None


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    dtype = options.compute_dtype
    loss = torch.zeros((), dtype=wide, device=hidden.device)
    losses = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)  # (M,)
    hidden_grad = torch.empty_like(hidden) if options.hidden_grad else None
    weight_grad = torch.zeros_like(weight, dtype=wide) if options.weight_grad else None
    with torch.autocast(hidden.device.type, enabled=False):
        table = weight.to(dtype)
        for start in range(0, hidden.shape[0], options.chunk_size):
            part = slice(start, start + options.chunk_size)
            x = hidden[part].to(dtype)  # (C, D)
            logits = (x @ table.t()).to(wide)  # (C, V)
            losses[part] = _logits_to_gradient(logits, targets[part], options)
            loss += losses[part].sum()
            if hidden_grad is None and weight_grad is None:
                continue
            gradient = logits.to(dtype)
            if hidden_grad is not None:
                hidden_grad[part] = gradient @ table  # (C, D)
            if weight_grad is not None and dtype == wide:
                weight_grad.addmm_(gradient.t(), x)  # (V, D)
            elif weight_grad is not None:
                weight_grad += gradient.t() @ x  # (V, D)
    return loss, losses, hidden_grad, weight_grad


def _logits_to_gradient(logits: Tensor, targets: Tensor, options: _Options) -> Tensor:
    """Overwrites logits (C, V) by the gradient of the chunk's loss, and returns its losses (C,)."""
    slope: Tensor | None = None
    if options.softcap is not None:
        logits.div_(options.softcap).tanh_()
        if options.hidden_grad or options.weight_grad:
            slope = 1 - logits.square()
        logits.mul_(options.softcap)
    valid = targets >= 0  # (C,)
    column = targets.clamp(min=0)[:, None]  # (C, 1)
    smoothing = options.label_smoothing
    score = logits.gather(1, column)[:, 0] * (1 - smoothing)  # (C,)
    if smoothing:
        score = score + logits.mean(dim=1) * smoothing
    top = logits.amax(dim=1, keepdim=True)  # (C, 1)
    total = logits.sub_(top).exp_().sum(dim=1, keepdim=True)  # (C, 1)
    losses = ((top + total.log())[:, 0] - score).mul(valid)  # (C,)
    if options.hidden_grad or options.weight_grad:
        logits.div_(total)
        if smoothing:
            logits.sub_(smoothing / logits.shape[1])
        logits.scatter_add_(1, column, torch.full_like(column, smoothing - 1, dtype=logits.dtype))
        logits.mul_(valid[:, None])
        if slope is not None:
            logits.mul_(slope)
    return losses
