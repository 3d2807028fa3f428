"""What of a model its adapters train, and what they hold still."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from speechlmm_core.lora.plain import BASE, DROPOUT, MATRICES, adapted_layers

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM


def matrices(model: nn.Module) -> dict[str, str]:
    """The adapter that each of the adapters' own parameters belongs to, by the parameter's name."""
    found: dict[str, str] = {}
    for name, layer in adapted_layers(model):
        start = f"{name}." if name else ""
        for key, _ in layer.named_parameters():
            parts = key.split(".")
            if parts[0] in MATRICES:
                found[start + key] = parts[1]
    return found


def trained_biases(model: SpeechLMM) -> set[str]:
    """The biases that adapters train beside their own parameters, as `bias` says."""
    found: set[str] = set()
    for adapter in model.lora_adapters:
        if adapter.bias == "none" or adapter.name in model.frozen_adapters:
            continue
        held = set(own_parameters(model, adapter.target_module))
        biases = {name for name in held if name.endswith(".bias") or name == "bias"}
        if adapter.bias == "lora_only":
            layers = [name for name, layer in adapted_layers(model) if _has(layer, adapter.name)]
            biases &= {f"{name}.{BASE}.bias" for name in layers}
        found |= biases
    return found


def held_parameters(model: SpeechLMM) -> set[str]:
    """The parameters that are not trained whatever else is said: those under an adapter, and quantised ones."""
    roots = [adapter.target_module for adapter in model.lora_adapters]
    return {name for root in (*roots, *model.quantised_modules) for name in own_parameters(model, root)}


def own_parameters(model: nn.Module, root: str) -> list[str]:
    """Names of the parameters under a module that belong to no adapter."""
    adapters = matrices(model)
    names = (f"{root}.{key}" for key, _ in model.get_submodule(root).named_parameters())
    return [name for name in names if name not in adapters]


def dropouts(model: nn.Module) -> list[nn.Module]:
    """The dropout of adapters that are trained."""
    found: list[nn.Module] = []
    for _, layer in adapted_layers(model):
        for name, dropout in layer.get_submodule(DROPOUT).named_children():
            if any(parameter.requires_grad for parameter in _matrices_of(layer, name)):
                found.append(dropout)
    return found


def _matrices_of(layer: nn.Module, adapter: str) -> list[nn.Parameter]:
    return [value for key, value in layer.named_parameters() if key.split(".")[:2] in [[k, adapter] for k in MATRICES]]


def _has(layer: nn.Module, adapter: str) -> bool:
    return bool(_matrices_of(layer, adapter))
