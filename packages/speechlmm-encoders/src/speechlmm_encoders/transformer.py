"""Running transformers' encoder layers over padded batches.

Shapes: B batch, T frames, D hidden, N layers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

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

    def forward(self, states: Iterable[Tensor]) -> Tensor:
        """The sum over N + 1 states of one shape, in their dtype; it is accumulated in fp32."""
        shares = self.shares()
        total = state = shares.new_zeros(())  # on the device, where one of the host would be copied to each time
        for share, state in zip(shares.split(1), states, strict=True):
            # By `addcmul`, which keeps the state in its own dtype for the gradient, and no product.
            total = torch.addcmul(total, share, state)  # (B, T, D)
        return total.to(state.dtype)


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


def keep_layers(model: Any, layers: str, wanted: int | None, norm: str | None = None) -> None:
    """Drops the layers of a network that its output does not reach, with the norm after the last one.

    Left in, they would take memory, stand in checkpoints, and be parameters without a gradient.

    Args:
        model: The network.
        layers: Name of its list of layers.
        wanted: Layers to keep; None for all.
        norm: Name of the norm after the last layer; one that does nothing takes its place.
    """
    found = model.get_submodule(layers)
    if wanted is None or wanted >= len(found):
        return
    model.set_submodule(layers, found[:wanted])
    if norm is not None:
        model.set_submodule(norm, nn.Identity())


def leave_out(values: Tensor, before: Tensor, probability: float) -> Tensor:
    """What a layer gave, or (with a probability) what it got: LayerDrop (Fan et al., 2019, arXiv:1909.11556).

    The layer has run either way: where ranks draw apart, or a layer is spread over them, each must find every
    parameter in its graph, with a gradient of zero where the layer is left out. The host does not wait for the draw.
    """
    return torch.where(torch.rand((), device=values.device) < probability, before, values)


def run_layers(
    layers: Sequence[nn.Module] | nn.ModuleList,
    values: Tensor,
    call: Callable[[nn.Module, Tensor], Tensor],
    *,
    norm: nn.Module | None = None,
    mix: LayerMix | None = None,
    layerdrop: float = 0.0,
) -> Tensor:
    """Applies encoder layers in turn.

    Args:
        layers: N layers of transformers; those that are not wanted have been dropped by `keep_layers`.
        values: (B, T, D).
        call: Applies one layer to (B, T, D).
        norm: What follows the last layer.
        mix: The weights of a sum of the N + 1 states.
        layerdrop: Probability of leaving a layer out while it is in training mode, see `leave_out`.

    Returns:
        (B, T, D): the last state (normalised), or the sum of the states.
    """
    states = _states(layers, values, call, norm, layerdrop)
    if mix is not None:
        return mix(states)
    return deque(states, maxlen=1).pop()


def _states(
    layers: Sequence[nn.Module] | nn.ModuleList,
    values: Tensor,
    call: Callable[[nn.Module, Tensor], Tensor],
    norm: nn.Module | None,
    layerdrop: float,
) -> Iterator[Tensor]:
    """The N + 1 states, one after the other."""
    for layer in layers:
        yield values
        before, values = values, call(layer, values)  # (B, T, D)
        if layerdrop > 0 and layer.training:
            values = leave_out(values, before, layerdrop)
    yield values if norm is None else norm(values)
