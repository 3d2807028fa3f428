"""The weight of a layer as its adapters make it, for what uses tables as a whole and not by calling the layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from speechlmm_core.lora.plain import is_adapted


def effective_weight(layer: nn.Module) -> Tensor:
    """(V, D) a layer's weight, with what its active adapters add; gradients reach the adapters.

    Their dropout, which is on the layer's input, is left out.
    """
    adapted: Any = layer
    if not is_adapted(layer):
        return adapted.weight
    weight: Tensor = adapted.get_base_layer().weight
    for name in adapted.active_adapters:
        weight = weight + adapted.get_delta_weight(name)
    return weight
