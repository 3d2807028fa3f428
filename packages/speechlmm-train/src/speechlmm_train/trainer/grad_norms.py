"""Gradient norms of the parts of a model, on the device and without waiting for it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

_ADAPTER = re.compile(r"\.lora_\w+\.(?P<name>[^.]+)")


def part_of(name: str) -> str:
    """The part that a parameter belongs to: a component, an objective, or a low-rank adapter by its name."""
    if (adapter := _ADAPTER.search(name)) is not None:
        return f"lora_{adapter['name']}"
    first, *others = name.split(".")
    return f"{first}.{others[0]}" if first == "objectives" else first


def part_norms(model: nn.Module) -> dict[str, Tensor]:
    """The norm of each part's gradient; none of parts without one.

    Gradients that are spread over processes (FSDP2) are taken together, for which all of these have to call it.
    DeepSpeed keeps gradients to itself: there are none to be seen then.
    """
    gradients: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients.setdefault(part_of(name), []).append(parameter.grad)
    return {part: _norm(own) for part, own in gradients.items()}


def total_norm(model: nn.Module) -> Tensor:
    """() the norm of the whole gradient; see `part_norms`."""
    return _norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """() the norm of all; those of each mesh of devices are reduced over their own."""
    meshes: dict[object, list[Tensor]] = {}
    for gradient in gradients:
        meshes.setdefault(gradient.device_mesh if isinstance(gradient, DTensor) else None, []).append(gradient)
    if not meshes:
        return torch.zeros(())
    norms = [get_total_norm(own) for own in meshes.values()]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole))
