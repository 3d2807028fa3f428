"""Kernels for variable lengths on CUDA: flash-attn's where it is installed, else the one in torch.

Shapes: N positions of the row, S segments, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from speechlmm_core.attention.choice import FLASH_CAPABILITY, flash_usable

MAX_HEAD_SIZE = 256


@cache
def _flash_attn(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor] | None:
    if not flash_usable(device, dtype):
        return None
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    return flash_attn_varlen_func


@cache
def _torch_varlen(device: torch.device) -> Callable[..., Any] | None:
    """Torch's kernel, if this release's takes a scale, a window and grouped heads, and the device can run it."""
    if device.type != "cuda" or find_spec("torch.nn.attention.varlen") is None:
        return None
    if torch.cuda.get_device_capability(device) < FLASH_CAPABILITY:
        return None
    from torch.nn.attention.varlen import varlen_attn

    parameters = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= set(parameters) else None


def attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    *,
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor | None:
    """Causal attention within each segment of a row, in one kernel.

    Args:
        query: (1, H, N, D).
        key: (1, K, N, D).
        value: (1, K, N, D).
        cu_seqlens: (S+1,) int32 bounds of the segments.
        longest: Positions of the longest segment.
        scale: Factor on the scores.
        dropout: Probability on the attention weights.
        window: Positions that a position sees, itself included; None for all before it.
        softcap: Cap of the scores.

    Returns:
        (1, N, H, D), or None where no kernel here computes this.
    """
    if query.dtype not in (torch.float16, torch.bfloat16) or query.shape[-1] > MAX_HEAD_SIZE:
        return None
    if query.shape[-1] != value.shape[-1] or query.shape[-1] % 8 != 0:
        return None
    flash = _flash_attn(query.device, query.dtype)
    varlen = None if flash is not None else _torch_varlen(query.device)
    # Windows shorter than a segment go segment by segment in torch's: releases differ in what they count.
    if flash is None and (varlen is None or dropout or softcap is not None or window is not None):
        return None
    flat = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]  # (N, H, D), (N, K, D) twice
    # The kernels count the positions to the left of a query, without itself.
    left = -1 if window is None else window - 1
    if flash is not None:
        out = flash(
            *flat,
            cu_seqlens,
            cu_seqlens,
            longest,
            longest,
            dropout_p=dropout,
            softmax_scale=scale,
            causal=True,
            window_size=(left, 0 if window is not None else -1),
            softcap=softcap or 0.0,
        )
        return out[None]  # (1, N, H, D)
    assert varlen is not None
    out = varlen(
        *flat,
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[None]  # (1, N, H, D)
