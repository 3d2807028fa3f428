"""Freezing: parts of a model that get no gradient, no optimiser state, and stay in evaluation mode."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch.nn import Module, Parameter

from speechlmm_core.errors import ConfigError
from speechlmm_core.registry import nearest

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM


def freeze(model: SpeechLMM, names: Sequence[str]) -> None:
    """Makes everything trainable but the named modules; calling it again starts afresh.

    Args:
        model: The model.
        names: Module names (`audio_encoder`, `text_decoder.model.model.layers.0`) or globs (`*_encoder`).

    Raises:
        ConfigError: A name matches no module.
    """
    frozen = [module for name in names for module in match(model, name)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_can_train(model, name, parameter))
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    _settle(model, frozen)


def set_trainable(model: SpeechLMM, names: Sequence[str]) -> None:
    """Freezes everything but the named modules.

    Args:
        model: The model.
        names: Module names or globs.

    Raises:
        ConfigError: A name matches no module.
    """
    wanted = {module for name in names for module in match(model, name)}
    model.requires_grad_(False)
    for module in wanted:
        for name, parameter in model.get_submodule(module).named_parameters():
            parameter.requires_grad_(_can_train(model, f"{module}.{name}", parameter))
    frozen = [n for n, module in model.named_modules() if n and not any(p.requires_grad for p in module.parameters())]
    _settle(model, [name for name in frozen if not any(name.startswith(f"{w}.") for w in wanted)])


def _can_train(model: SpeechLMM, name: str, parameter: Parameter) -> bool:
    # Quantised weights have no gradient to give.
    return parameter.is_floating_point() and name not in model.constants


def _settle(model: SpeechLMM, frozen: Sequence[str]) -> None:
    """Records what can change from now on, and puts in evaluation mode what is frozen.

    That is the named modules, and every module none of whose parameters train: a component whose network is frozen
    drops nothing out either, whatever name it was frozen by.
    """
    model.ever_trainable |= {name for name, p in model.named_parameters() if p.requires_grad}
    still = [name for name, module in model.named_modules() if name and _is_still(module)]
    outermost: list[str] = []
    for name in sorted({*frozen, *still}):
        if not any(name.startswith(f"{outer}.") for outer in outermost):
            outermost.append(name)
    model.frozen_modules = tuple(outermost)
    model.train(model.training)


def _is_still(module: Module) -> bool:
    # A module without parameters (a dropout) follows the one that it is in.
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


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
