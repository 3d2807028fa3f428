"""Parameters that a loss does not depend on, for DDP: it waits for a gradient of each one that is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


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
