"""Parameters by learning rate: `lr_groups` names modules, or globs of modules, with rates of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase

from torch import nn

from speechlmm_core.errors import ConfigError
from speechlmm_core.registry import nearest

REST = ""
"""Stands for the parameters that no group matches."""


def parameter_groups(
    model: nn.Module, names: Collection[str], *, strict: bool = True
) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """The trainable parameters by the longest of ``names`` that matches a module they belong to.

    Args:
        model: The model, frozen as it will be trained.
        names: Module names or globs.
        strict: Whether each has to match something that is trained; otherwise what it matches may be frozen.

    Raises:
        ConfigError: A name matches nothing.
    """
    ordered = sorted(names, key=lambda name: (-len(name), name))
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
    matched: set[str] = set()
    for name, parameter in model.named_parameters():
        fitting = [one for one in ordered if any(fnmatchcase(place, one) for place in _places(name))]
        matched.update(fitting)
        if parameter.requires_grad:
            groups.setdefault(fitting[0] if fitting else REST, []).append((name, parameter))
    modules = [name for name, _ in model.named_modules() if name]
    faults = [f"{name!r} matches no module{nearest(name, modules)}" for name in ordered if name not in matched]
    if strict:
        faults += [f"nothing is trained in {name!r}" for name in ordered if name in matched and name not in groups]
    if faults:
        raise ConfigError(f"lr_groups: {'; '.join(faults)}")
    return groups


def optimizer_groups(
    model: nn.Module,
    rates: Mapping[str, float],
    *,
    learning_rate: float,
    weight_decay: float,
    decays: Collection[str],
    strict: bool = True,
) -> Iterator[dict[str, object]]:
    """The optimiser's groups: by rate, and by whether their weights decay.

    Args:
        model: The model.
        rates: Learning rates by module name or glob.
        learning_rate: That of all other parameters.
        weight_decay: Weight decay of the parameters in ``decays``.
        decays: Names of parameters.
        strict: See `parameter_groups`.
    """
    for group, members in parameter_groups(model, rates, strict=strict).items():
        for decay in (True, False):
            own = [parameter for name, parameter in members if (name in decays) == decay]
            if own:
                rate = rates.get(group, learning_rate)
                yield {"params": own, "weight_decay": weight_decay if decay else 0.0, "lr": rate}


def _places(name: str) -> list[str]:
    """A parameter's name and those of the modules that it lies in."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
