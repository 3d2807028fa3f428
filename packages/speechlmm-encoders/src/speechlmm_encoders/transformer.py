"""Running transformers' encoder layers over padded batches.

Shapes: B batch, T frames, D hidden, N layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from speechlmm_core.features import length_mask
from speechlmm_core.interfaces.modules import Component


class LayerMix(Component):
    """A learned weighted sum of hidden states.

    Yang et al., 2021, "SUPERB: Speech processing Universal PERformance Benchmark" (arXiv:2105.01051).
    """

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_states))

    def init_weights(self) -> None:
        """All states alike, for a checkpoint that has no weights for them."""
        nn.init.zeros_(self.weights)

    def shares(self) -> Tensor:
        """(N + 1,) fp32 shares of the states; their sum is one."""
        return self.weights.float().softmax(0)


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


def run_layers(
    layers: Sequence[nn.Module] | nn.ModuleList,
    values: Tensor,
    call: Callable[[nn.Module, Tensor], Tensor],
    *,
    wanted: int | None,
    norm: nn.Module | None = None,
    mix: LayerMix | None = None,
    layerdrop: float = 0.0,
) -> Tensor:
    """Applies encoder layers in turn, as far as they are wanted.

    Args:
        layers: N layers of transformers.
        values: (B, T, D).
        call: Applies one layer to (B, T, D).
        wanted: Layers to run; None for all, with a weighted sum of the N + 1 states.
        norm: What follows the last layer.
        mix: The weights of the sum.
        layerdrop: Probability of leaving a layer out while it is in training mode (arXiv:1909.11556).

    Returns:
        (B, T, D): the state after ``wanted`` layers (after the last one normalised), or the sum of the states.
    """
    depth = len(layers)
    total = torch.zeros_like(values)
    shares = None if mix is None else mix.shares().to(values.dtype)
    for number in range(depth + 1):
        if number:
            layer = layers[number - 1]
            if not (layerdrop > 0 and layer.training and torch.rand(()) < layerdrop):
                values = call(layer, values)  # (B, T, D)
        state = norm(values) if norm is not None and number == depth else values
        if wanted == number:
            return state
        if shares is not None:
            total = total + shares[number] * state
    return total
