"""A model on several devices, for inference: parts that do not fit on one lie on others, and inputs follow them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from speechlmm_core.errors import ConfigError
from speechlmm_core.registry import nearest

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM

DeviceMap = str | Mapping[str, str | int | torch.device]
"""`auto`, or devices by module name (`text_decoder.model.model.layers.0`); `""` is for all that is not named."""
ROOM = 0.9
"""Share of a GPU's free memory that weights may take; the rest is for activations and the cache."""


def place(model: SpeechLMM, device_map: DeviceMap) -> None:
    """Moves the parts of a model to their devices, and has what they take come to them.

    Args:
        model: The model.
        device_map: Where the parts go.

    Raises:
        ConfigError: A name is of no part, a device does not exist, parts on several devices share a weight, or the
            model is too large for all GPUs together.
    """
    wanted = automatic(model) if device_map == "auto" else _checked(model, device_map)
    main = _device_of("text_decoder", wanted)
    _spread(model, wanted)
    for name in wanted:
        if name in ("", "text_decoder"):
            continue  # what is put into them is where they begin
        _fetch_inputs(model.get_submodule(name), _device_of(name, wanted))
    body = cast("nn.Module", model.text_decoder.model)
    for child in (*_leaves(body, wanted),):
        _fetch_inputs(child, main)
    for name in model.input_names:
        for tower in (f"{name}_encoder", f"{name}_adapter"):
            if tower not in wanted:
                _fetch_inputs(model.get_submodule(tower), _device_of(tower, wanted))
        model.get_submodule(f"{name}_adapter").register_forward_hook(lambda _module, _inputs, out: moved(out, main))


def automatic(model: SpeechLMM) -> dict[str, torch.device]:
    """A map over all GPUs: the text decoder's blocks in order, from the first GPU on, and all else on the first.

    Raises:
        ConfigError: There is no GPU, or the weights do not fit on all of them together.
    """
    count = torch.cuda.device_count()
    if count == 0:
        return {"": torch.device("cpu")}
    sizes = {name: _bytes(block) for name, block in blocks(model).items()}
    rest = _bytes(model) - sum(sizes.values())
    free = [int(ROOM * torch.cuda.mem_get_info(number)[0]) for number in range(count)]
    wanted = {"": torch.device("cuda", 0)}
    free[0] -= rest
    number = 0
    for name, size in sizes.items():
        while number < count and free[number] < size:
            number += 1
        if number == count or free[0] < 0:
            raise ConfigError(
                f"device_map 'auto': the weights take {_bytes(model) / 1e9:.1f} GB, more than the {count} GPUs have "
                "free; quantise them (load_in_4bit), or name 'cpu' for a part in a map"
            )
        free[number] -= size
        if number:
            wanted[name] = torch.device("cuda", number)
    return wanted


def blocks(model: SpeechLMM) -> dict[str, nn.Module]:
    """The text decoder's blocks by name: the members of its largest list of modules."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    own = [(name, module) for name, module in lists if name.startswith("text_decoder.")]
    if not own:
        return {}
    name, largest = max(own, key=lambda one: _bytes(one[1]))
    return {f"{name}.{number}": block for number, block in enumerate(largest)}


def moved(value: Any, device: torch.device) -> Any:
    """Tensors on another device, with all that holds them."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        items = {key: moved(one, device) for key, one in cast("dict[Any, Any]", value).items()}
        return items if type(value) is dict else type(value)(**items)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if type(value) in (list, tuple):
        return type(value)(moved(one, device) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: moved(getattr(value, one.name), device) for one in fields(value)})
    return value


def _checked(model: SpeechLMM, device_map: DeviceMap) -> dict[str, torch.device]:
    if isinstance(device_map, str):
        raise ConfigError(f"unknown device_map {device_map!r}; expected 'auto', or devices by module name")
    names = ["", *model.components(), *(n for n, _ in model.named_modules() if n.startswith("text_decoder."))]
    found: dict[str, torch.device] = {}
    for name, device in device_map.items():
        if name not in names:
            raise ConfigError(
                f"device_map: {name!r} is no component and no part of the text decoder{nearest(name, names)}"
            )
        if device == "disk":
            raise ConfigError(f"device_map: {name!r} cannot stay on the disk; name 'cpu' for it")
        try:
            found[name] = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
            torch.empty(0, device=found[name])
        except (RuntimeError, AssertionError) as exc:
            raise ConfigError(f"device_map: {name!r}: there is no device {device!r} here") from exc
    return found


def _spread(model: nn.Module, wanted: Mapping[str, torch.device]) -> None:
    """Moves each module's own tensors, and none of its parts': what does not fit on the outer device never comes there.

    Raises:
        ConfigError: Modules on several devices share a parameter.
    """
    holders: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            holders.setdefault(id(parameter), []).append((name, module, key))
    shared = [found for found in holders.values() if len(found) > 1]
    for found in shared:
        if len({_device_of(name, wanted) for name, _, _ in found}) > 1:
            names = " and ".join(repr(name) for name, _, _ in found)
            raise ConfigError(f"device_map: {names} share one weight; name one device for them")
    for name, module in model.named_modules():
        device = _device_of(name, wanted)
        module._apply(lambda tensor, device=device: tensor.to(device), recurse=False)
    for (_, first, own), *others in shared:
        for _, module, key in others:
            module._parameters[key] = first._parameters[own]


def _device_of(name: str, wanted: Mapping[str, torch.device]) -> torch.device:
    parts = name.split(".") if name else []
    for end in range(len(parts), -1, -1):
        if (outer := ".".join(parts[:end])) in wanted:
            return wanted[outer]
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _leaves(body: nn.Module, wanted: Mapping[str, torch.device]) -> list[nn.Module]:
    """What of the language model stays on its first device though parts of it do not: norms, embeddings, the head."""
    apart = [name.removeprefix("text_decoder.model.") for name in wanted if name.startswith("text_decoder.model.")]
    if not apart:
        return []
    around = {outer for name in apart for outer in _outer(name)}
    found: list[nn.Module] = []
    for name, module in body.named_modules():
        if name and name not in around and name not in apart and name.rpartition(".")[0] in around | {""}:
            found.append(module)
    return found


def _outer(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _fetch_inputs(module: nn.Module, device: torch.device) -> None:
    module.register_forward_pre_hook(
        lambda _module, args, kwargs: (moved(args, device), moved(kwargs, device)), with_kwargs=True
    )


def _bytes(module: nn.Module) -> int:
    return sum(one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers()))
