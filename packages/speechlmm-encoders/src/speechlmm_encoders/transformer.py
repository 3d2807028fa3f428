"""Running transformers' encoder layers over padded batches.

Shapes: B batch, T frames, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from speechlmm_core.features import length_mask


def attention_mask(lengths: Tensor, num_frames: int, implementation: str, dtype: torch.dtype) -> Tensor:
    """The mask of padded keys in the form that an attention implementation of transformers takes.

    Made here and not by transformers, which reads the mask's content on the host to see whether it can be left out.
    An empty row attends to its first frame, since a softmax over nothing is not a number.
    """
    mask = length_mask(lengths.clamp(min=1), num_frames)  # (B, T)
    if implementation.startswith("flash"):
        return mask
    mask = mask[:, None, None, :]  # (B, 1, 1, T)
    if implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def run_layers(layers: Iterable[nn.Module], values: Tensor, mask: Tensor, *, layerdrop: float) -> Tensor:
    """Applies encoder layers in turn.

    Args:
        layers: Layers of transformers.
        values: (B, T, D).
        mask: From `attention_mask`.
        layerdrop: Probability of leaving a layer out while it is in training mode (arXiv:1909.11556).
    """
    for layer in layers:
        if layerdrop > 0 and layer.training and torch.rand(()) < layerdrop:
            continue
        values = layer(values, attention_mask=mask)  # (B, T, D)
    return values


def resolve_attention(requested: str) -> str:
    """The implementation behind `auto`."""
    return "sdpa" if requested == "auto" else requested
