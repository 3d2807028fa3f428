"""Whole weights for a while: generation runs the language model at each process's own pace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from speechlmm_core.checkpoint.fill import is_spread, whole

_KEPT = -1
"""Stands among the modules that DeepSpeed holds a parameter for, so that none of them lets go of it."""


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Gathers a model that is spread by FSDP2 or ZeRO's stage 3; every process has room for all of it, or it fails."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        with _gathered(model):
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
def _gathered(model: nn.Module) -> Iterator[None]:
    """Lays whole weights in full precision in the places of FSDP2's parts, and its hooks aside.

    With its hooks a unit would be gathered at each of its calls, for which all processes would have to come, and in the
    precision of training.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.reshard()
    parts: list[tuple[nn.Module, str, nn.Parameter]] = []
    made: dict[int, nn.Parameter] = {}  # tied weights are one
    hooks: list[tuple[dict[int, Any], dict[int, Any]]] = []
    try:
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is None or not is_spread(parameter):
                    continue
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(whole(parameter), requires_grad=False)
                parts.append((module, name, parameter))
                module._parameters[name] = made[id(parameter)]
        for unit in units:
            for held in (unit._forward_pre_hooks, unit._forward_hooks):
                hooks.append((held, dict(held)))
                for key, hook in hooks[-1][1].items():
                    if isinstance(getattr(hook, "__self__", None), FSDPState):
                        del held[key]
        yield
    finally:
        for held, before in hooks:
            held.clear()
            held.update(before)
        for module, name, parameter in parts:
            module._parameters[name] = parameter
