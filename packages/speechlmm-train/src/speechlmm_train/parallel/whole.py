"""Whole weights for a while: generation runs the language model at each process's own pace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_KEPT = -1
"""Stands among the modules that DeepSpeed holds a parameter for, so that none of them lets go of it."""


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Gathers a model that is spread by FSDP2 or ZeRO's stage 3; every process has room for all of it, or it fails."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        with _unsharded([module for module in model.modules() if isinstance(module, FSDPModule)]):
            yield
        return
    spread: list[Any] = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    if not spread:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(spread):
        for parameter in spread:
            parameter.ds_active_sub_modules.add(_KEPT)
        try:
            yield
        finally:
            for parameter in spread:
                parameter.ds_active_sub_modules.clear()


@contextmanager
def _unsharded(modules: list[Any]) -> Iterator[None]:
    # Without its hooks a unit would be gathered for each of its calls, for which all processes would have to come.
    for module in modules:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in modules:
            # The first is the root, which stays gathered in a forward pass.
            module.set_reshard_after_forward(module is not modules[0], recurse=False)
            module.reshard()
