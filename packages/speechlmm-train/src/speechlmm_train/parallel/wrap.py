"""How a model is spread over processes.

In every mode the text decoder's blocks are the units that are spread and gathered one at a time. All else (embeddings,
head, encoders, adapters, objectives) is gathered at the start of a forward pass and stays until its end: it is small
beside the blocks, parts of it are used from outside their own modules, and what a rank has to wait for then does not
depend on which media it has. What is never trained, but for the text decoder, is not spread at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speechlmm_core.errors import ConfigError

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM


def untrained(model: SpeechLMM) -> set[str]:
    """The components that nothing of is trained now, but for the text decoder."""
    return {
        name
        for name, component in model.components().items()
        if name != "text_decoder" and not any(parameter.requires_grad for parameter in component.parameters())
    }


def blocks(model: SpeechLMM) -> list[nn.Module]:
    """The text decoder's blocks: the members of its largest list of modules.

    Raises:
        ConfigError: It has none.
    """
    lists = [module for module in model.text_decoder.model.modules() if isinstance(module, nn.ModuleList)]
    sizes = {id(one): sum(parameter.numel() for parameter in _parameters(one)) for one in lists}
    if not lists:
        kind = type(model.text_decoder.model).__name__
        raise ConfigError(f"the text decoder ({kind}) has no list of blocks to spread over processes; use ddp")
    return list(max(lists, key=lambda one: sizes[id(one)]))


def shard(model: SpeechLMM, *, whole: Collection[str], device: torch.device, bf16: bool) -> None:
    """Spreads a model by FSDP2 (torch's `fully_shard`), in place; one that is spread already takes up its freezing.

    Args:
        model: The model.
        whole: Components that stay whole in every process.
        device: Where it is trained.
        bf16: Whether blocks are gathered in bf16.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if isinstance(model, FSDPModule):
        _take_up_freezing(model)
        return
    to_device(model, whole=whole, device=device)
    ignored = {parameter for name in whole for parameter in model.get_submodule(name).parameters()}
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=half if bf16 else MixedPrecisionPolicy(), ignored_params=ignored)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=ignored)


def to_device(model: SpeechLMM, *, whole: Collection[str], device: torch.device) -> None:
    """Moves what is not spread: whatever spreads a model takes the other parameters along, and not always buffers.

    Args:
        model: The model.
        whole: Components that stay whole in every process.
        device: Where it is trained.
    """
    for name in whole:
        model.get_submodule(name).to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def _take_up_freezing(model: Any) -> None:
    """Gathered parameters are made once, with the freezing of that time; they are told what is frozen now."""
    from torch.distributed.fsdp import FSDPModule

    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for prefix, module in model.named_modules():
        if not isinstance(module, FSDPModule):
            continue
        module.unshard()
        for name, parameter in model.named_parameters():
            if name.startswith(prefix):
                parameter.requires_grad_(wanted[name])
        module.reshard()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted[name])


@contextmanager
def hidden(model: SpeechLMM, names: Collection[str]) -> Iterator[None]:
    """Takes components out of a model for a while, so that DeepSpeed neither spreads nor casts them."""
    taken: list[tuple[nn.Module, str, nn.Module]] = []
    for name in names:
        parent, _, child = name.rpartition(".")
        holder = model.get_submodule(parent)
        taken.append((holder, child, holder._modules[child]))  # pyright: ignore[reportArgumentType]
        # The place in the order of modules is kept.
        holder._modules[child] = nn.Module()
    try:
        yield
    finally:
        for holder, child, module in taken:
            holder._modules[child] = module


def gather_at_start(model: SpeechLMM) -> None:
    """Has DeepSpeed's stage 3 gather, at the start of a forward pass, everything but the text decoder's blocks."""
    import deepspeed

    inside = {id(parameter) for block in blocks(model) for parameter in block.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in inside and hasattr(parameter, "ds_id"):
            deepspeed.zero.register_external_parameter(model, parameter)


def leave_whole(engine: Any, model: SpeechLMM, names: Collection[str]) -> None:
    """Keeps components that stay whole from DeepSpeed's stage 3, which lets go of all parameters after a step.

    Args:
        engine: DeepSpeed's, around the model.
        model: The model, with all of its components.
        names: Those that were hidden when it was wrapped.
    """
    offload = getattr(engine.optimizer, "parameter_offload", None)
    if offload is not None and names:
        offload.module = _Spread(part for name, part in model.components().items() if name not in names)


class _Spread(nn.ModuleList):
    """The components that DeepSpeed has spread, as it asks a model for its parameters."""

    def ds_external_parameters(self) -> tuple[tuple[str, nn.Parameter], ...]:
        """Parameters of other modules that it uses."""
        return ()


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters())
