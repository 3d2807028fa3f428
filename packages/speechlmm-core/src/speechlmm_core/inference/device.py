"""Which device a model runs on, from what the user wrote."""

from __future__ import annotations

from typing import Any

import torch

from speechlmm_core.errors import ConfigError

EXPECTED = "expected auto, all, cpu, cuda or cuda:<number>"
ALL = "all"
"""Stands for all GPUs together."""


def device_arguments(name: str) -> dict[str, Any]:
    """Where `from_pretrained` is to put a model; `all` spreads it over all GPUs.

    Raises:
        ConfigError: There is no such device.
    """
    return {"device_map": "auto"} if name == ALL else {"device": choose_device(name)}


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is the first GPU where there is one.

    Raises:
        ConfigError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise ConfigError(f"unknown device {name!r}; {EXPECTED}") from exc
    if device.type not in ("cpu", "cuda", "mps", "xpu"):
        raise ConfigError(f"cannot run on the device {name!r}; {EXPECTED}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"no device {name!r} on this machine, which has {torch.cuda.device_count()} GPUs")
    return device
