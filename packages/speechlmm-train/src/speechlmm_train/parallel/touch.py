"""Parameters that a loss does not depend on.

DDP waits for a gradient of each parameter that is trained, and what an optimiser does with one that has none would
depend on how many processes share a step. So each that the stage's data can reach has one, zero where nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM


def reached(model: SpeechLMM, inputs: Collection[str]) -> list[nn.Parameter]:
    """The trained parameters, but for those that only inputs which never come would reach.

    Args:
        model: The model.
        inputs: Inputs that the data have.
    """
    absent = [name for name in model.input_names if name not in inputs]
    stages = {f"{name}_{tower}" for name in absent for tower in ("encoder", "adapter")}
    idle = {f"objectives.{name}" for name in model.objectives if stages & set(model.objective(name).config.stages)}
    found: list[nn.Parameter] = []
    for name, component in model.components().items():
        if name not in stages | idle:
            found += [parameter for parameter in component.parameters() if parameter.requires_grad]
    return found


def still(model: SpeechLMM, inputs: Collection[str]) -> None:
    """Freezes what inputs that never come would reach: no process would have a gradient of it."""
    kept = {id(parameter) for parameter in reached(model, inputs)}
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in kept:
            parameter.requires_grad_(False)


def give_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gives a gradient of zero to those that have none."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def unreached(loss: Tensor, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those of the trained parameters that a loss does not depend on, found by walking through its graph."""
    left = {id(parameter): parameter for parameter in parameters if parameter.requires_grad}
    pending: list[Any] = [loss.grad_fn]
    seen: set[Any] = set()
    while pending and left:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # where a gradient is accumulated
        if variable is not None:
            left.pop(id(variable), None)
        pending += [following for following, _ in node.next_functions]
    return list(left.values())


def touched(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """The same loss, which now depends on the parameters: their gradients are zero."""
    nothing = [parameter.flatten()[:0].sum() for parameter in parameters]
    return loss + torch.stack(nothing).sum().to(loss.dtype) if nothing else loss


@contextmanager
def statistics_kept(model: SpeechLMM, inputs: Collection[str]) -> Iterator[None]:
    """Keeps what the towers of some inputs count of what they see: a spacer is not part of the data.

    Args:
        model: The model.
        inputs: Inputs of which a micro-batch holds spacers alone.
    """
    towers = [tower for name in inputs for tower in (model.encoder(name), model.adapter(name))]
    norms = [
        module
        for tower in towers
        for module in tower.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
