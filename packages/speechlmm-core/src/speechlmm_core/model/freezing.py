"""Freezing: parts of a model that get no gradient, no optimiser state, and stay in evaluation mode.

What has an adapter is frozen but for adapters that are trained, and so are quantised weights, whatever is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch.nn import Module, Parameter
from transformers.modeling_layers import GradientCheckpointingLayer

from speechlmm_core.errors import ConfigError
from speechlmm_core.lora.parameters import dropouts, held_parameters, matrices, trained_biases
from speechlmm_core.lora.plain import plain_names
from speechlmm_core.registry import nearest

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM


def freeze(model: SpeechLMM, names: Sequence[str]) -> None:
    """Makes everything trainable but the named modules; calling it again starts afresh.

    Adapters are trained even in modules that are named: it is the weights underneath that are frozen. A name with
    `lora_` in it (`*.lora_A.my_adapter`) means adapters, and freezes them.

    Args:
        model: The model.
        names: Module names (`audio_encoder`, `text_decoder.model.model.layers.0`) or globs (`*_encoder`).

    Raises:
        ConfigError: A name matches no module.
    """
    matched = {name: match(model, name) for name in names}
    roles = _Roles(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(roles.can_train(name, parameter))
    for given, modules in matched.items():
        for module in modules:
            for name, parameter in model.get_submodule(module).named_parameters():
                if _means_adapters(given) or not roles.of_adapter(f"{module}.{name}"):
                    parameter.requires_grad_(False)
    _settle(model, [module for modules in matched.values() for module in modules])


def set_trainable(model: SpeechLMM, names: Sequence[str]) -> None:
    """Freezes everything but the named modules; of those with adapters, the adapters are trained.

    Args:
        model: The model.
        names: Module names or globs.

    Raises:
        ConfigError: A name matches no module.
    """
    wanted = {module for name in names for module in match(model, name)}
    roles = _Roles(model)
    model.requires_grad_(False)
    for module in wanted:
        for name, parameter in model.get_submodule(module).named_parameters():
            parameter.requires_grad_(roles.can_train(f"{module}.{name}", parameter))
    frozen = [n for n, module in model.named_modules() if n and not any(p.requires_grad for p in module.parameters())]
    _settle(model, [name for name in frozen if not any(name.startswith(f"{w}.") for w in wanted)])


class _Roles:
    """What each parameter of a model is to its adapters."""

    def __init__(self, model: SpeechLMM) -> None:
        self.constants = model.constants
        self.frozen_adapters = model.frozen_adapters
        self.plain = plain_names(model)
        self.matrices = matrices(model)
        self.biases = trained_biases(model)
        self.held = held_parameters(model)

    def of_adapter(self, name: str) -> bool:
        """Whether an adapter trains the parameter, or its own do."""
        return name in self.matrices or name in self.biases

    def can_train(self, name: str, parameter: Parameter) -> bool:
        """Whether a parameter can be trained at all."""
        if name in self.matrices:
            return self.matrices[name] not in self.frozen_adapters
        if name in self.held and name not in self.biases:
            return False
        # Quantised weights have no gradient to give.
        return parameter.is_floating_point() and self.plain.get(name, name) not in self.constants


def _means_adapters(name: str) -> bool:
    return "lora_" in name


def _settle(model: SpeechLMM, frozen: Sequence[str]) -> None:
    """Records what can change from now on, and puts in evaluation mode what is frozen.

    That is the named modules, those that have adapters, and every module none of whose parameters train: a
    component whose network is frozen drops nothing out either, whatever name it was frozen by.
    """
    plain = plain_names(model)
    model.ever_trainable |= {plain[name] for name, p in model.named_parameters() if p.requires_grad and name in plain}
    still = [name for name, module in model.named_modules() if name and _is_still(module)]
    still += [one.target_module for one in model.lora_adapters]
    outermost: list[str] = []
    for name in sorted({*frozen, *still}):
        if not any(name.startswith(f"{outer}.") for outer in outermost):
            outermost.append(name)
    model.frozen_modules = tuple(outermost)
    model.modes = None
    model.train(model.training)


def _is_still(module: Module) -> bool:
    # A module without parameters (a dropout) follows the one that it is in.
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def keep_frozen(model: SpeechLMM) -> None:
    """Puts what is frozen in evaluation mode, in a model that is in training mode.

    The dropout of trained adapters stays as it is. So do layers that recompute their activations and that gradients
    pass: transformers recomputes in training mode only. Their parts are in evaluation mode all the same.
    """
    modes = model.modes
    if modes is None or any(old is not new for old, new in zip(modes.found_for, _found_for(model), strict=True)):
        modes = model.modes = _modes(model)
    for name in model.frozen_modules:
        model.get_submodule(name).eval()
    for dropout in modes.awake:
        dropout.train()
    for layer in modes.recomputing:
        if getattr(layer, "gradient_checkpointing", False):
            layer.training = True


@dataclass(frozen=True)
class Modes:
    """Modules in frozen ones that stay in training mode. Found once, as a model changes its mode at every step."""

    found_for: tuple[Any, ...]
    """What they follow from; they are sought anew when it is replaced."""
    awake: tuple[Module, ...]
    """The dropout of trained adapters."""
    recomputing: tuple[Module, ...]
    """Layers that gradients pass and that drop nothing out themselves; for when they recompute their activations."""


def _found_for(model: SpeechLMM) -> tuple[Any, ...]:
    return model.frozen_modules, model.lora_adapters, model.frozen_adapters


def _modes(model: SpeechLMM) -> Modes:
    layers: list[Module] = []
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer):
            passed = name.startswith("text_decoder.") or any(one.requires_grad for one in module.parameters())
            # A few layers drop out themselves, by a number of theirs.
            if passed and not (isinstance(rate := getattr(module, "dropout", 0), float) and rate > 0):
                layers.append(module)
    return Modes(_found_for(model), tuple(dropouts(model)), tuple(layers))


def match(model: SpeechLMM, name: str) -> list[str]:
    """The modules that a name or glob stands for.

    Raises:
        ConfigError: None.
    """
    names = [module for module, _ in model.named_modules() if module]
    found = [module for module in names if fnmatchcase(module, name)]
    if not found:
        raise ConfigError(
            f"{name!r} matches no module{nearest(name, names)}; the components are {', '.join(model.components())}"
        )
    return found
