"""Activations by their names."""

from __future__ import annotations

from torch import nn
from transformers.activations import ACT2FN

from speechlmm_core.errors import ConfigError


def activation(name: str) -> nn.Module:
    """The activation that transformers calls ``name``.

    Raises:
        ConfigError: It knows none of that name.
    """
    if name not in ACT2FN:
        raise ConfigError(f"unknown activation {name!r}; expected one of {', '.join(sorted(ACT2FN))}")
    return ACT2FN[name]
