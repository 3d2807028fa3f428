"""Which attention implementation of transformers a component runs on. Imports no torch until it has to choose."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

logger = logging.getLogger(__name__)
_reported: set[tuple[str, str]] = set()


def choose_attention(requested: str, module: type[Any], *, component: str = "") -> str:
    """The implementation that a component gets: what was asked for where it is possible, else the best there is.

    One setting for a whole model may ask for more than some of its parts can do, so nothing here is an error: what a
    component runs on is logged where it differs from what was asked for, and `plan` shows it.

    Args:
        requested: `auto`, or an implementation of transformers (`eager`, `sdpa`, `flash_attention_2`).
        module: The class of transformers that does the work; its flags say what it supports.
        component: The component's name, for the log.

    Returns:
        `flash_attention_2` (or the flash variant asked for), `sdpa` or `eager`.
    """
    flash = getattr(module, "_supports_flash_attn", False) and flash_usable()
    sdpa = bool(getattr(module, "_supports_sdpa", False))
    best = "flash_attention_2" if flash else "sdpa" if sdpa else "eager"
    if requested == "auto":
        return best
    if requested == "eager" or (requested == "sdpa" and sdpa) or (requested.startswith("flash") and flash):
        return requested
    chosen = "sdpa" if sdpa else "eager"
    if (key := (component, requested)) not in _reported:
        _reported.add(key)
        logger.warning("%s cannot run on %r here; it runs on %r", component or module.__name__, requested, chosen)
    return chosen


def flash_usable() -> bool:
    """Whether FlashAttention is installed and there is a GPU to run it."""
    if find_spec("flash_attn") is None:
        return False
    import torch

    return torch.cuda.is_available()
