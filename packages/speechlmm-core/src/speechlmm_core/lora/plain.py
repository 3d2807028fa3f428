"""Names of a model's tensors as they are without adapters: what checkpoints, freezing and base weights go by.

PEFT puts a layer with two matrices in the place of a linear layer, which is then its `base_layer`. A tensor's *plain*
name leaves that out (`q_proj.base_layer.weight` is `q_proj.weight`); the adapters' own tensors have none.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

BASE = "base_layer"
MATRICES = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
"""Attributes of a layer with adapters that hold, by adapter, what is trained."""
DROPOUT = "lora_dropout"
QUANTISED = ("Linear4bit", "Linear8bitLt")
"""Classes of bitsandbytes' linear layers."""


def is_adapted(module: nn.Module) -> bool:
    """Whether a module is a linear layer with adapters; told by what it has, so that PEFT need not be imported."""
    return hasattr(module, BASE) and hasattr(module, MATRICES[0])


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is a linear layer of bitsandbytes'; PEFT's layers around them have the same class names."""
    return type(module).__name__ in QUANTISED and not is_adapted(module)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers with adapters, by name."""
    for name, module in model.named_modules():
        if is_adapted(module):
            yield name, module


def plain_names(model: nn.Module) -> dict[str, str]:
    """The plain name of every parameter and saved buffer that belongs to no adapter, by its name in the state dict.

    Without adapters each name is its own.
    """
    layers = {name for name, _ in adapted_layers(model)}
    return {key: name for key in model.state_dict(keep_vars=True) if (name := _plain(key, layers)) is not None}


def _plain(key: str, layers: set[str]) -> str | None:
    parts = key.split(".")
    kept: list[str] = []
    for at, part in enumerate(parts):
        # A component may call a part of its own `base_layer`; only what layers with adapters hold counts.
        if (part == BASE or part in MATRICES) and ".".join(parts[:at]) in layers:
            if part != BASE:
                return None
            continue
        kept.append(part)
    return ".".join(kept)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict by plain name; parameters as such.

    Those of adapters are left out, and weights in 4 or 8 bits, which are no longer what they were.
    """
    state = model.state_dict(keep_vars=True)
    layers = [f"{name}." for name, module in model.named_modules() if is_quantised(module)]
    lost = {key for start in layers for key in state if key.startswith(start) and key != f"{start}bias"}
    return {name: state[key] for key, name in plain_names(model).items() if key not in lost}
