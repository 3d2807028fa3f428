"""Which attention implementation a component runs on. Imports no torch until it has to know the machine."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from speechlmm_core.interfaces.context import BuildContext

logger = logging.getLogger(__name__)
_reported: set[tuple[str, str]] = set()

FLASH = "flash_attention_2"
FLASH_CAPABILITY = (8, 0)
"""The oldest GPUs that flash-attn 2 runs on (https://github.com/Dao-AILab/flash-attention): Ampere."""

_FLASH_NEEDS = " (FlashAttention needs flash-attn, a GPU of compute capability 8.0 or more, and half precision)"


def choose_attention(ctx: BuildContext, module: type[Any]) -> str:
    """The implementation that a component gets: what was asked for where it is possible, else the best there is.

    One setting for a whole model may ask for more than some of its parts can do, so nothing here is an error: what a
    component runs on is logged where it differs from what was asked for, and `plan` shows it.

    Args:
        ctx: What was asked for, and whether FlashAttention can run.
        module: The class that does the work. One of transformers has flags that say what it supports; any other has
            one implementation, which it names by an attribute `attn_implementation`.

    Returns:
        `flash_attention_2`, `sdpa`, `eager`, or the module's own one.
    """
    requested, only = ctx.attn_implementation, getattr(module, "attn_implementation", None)
    flash = only is None and bool(getattr(module, "_supports_flash_attn", False))
    able = [only] if only is not None else ["sdpa", "eager"] if getattr(module, "_supports_sdpa", False) else ["eager"]
    if flash and ctx.flash_attention and requested in ("auto", FLASH):
        return FLASH
    if requested in ("auto", *able):
        return able[0] if requested == "auto" else requested
    component = ctx.component or module.__name__
    if (component, requested) not in _reported:
        _reported.add((component, requested))
        needs = _FLASH_NEEDS if flash and requested == FLASH else ""
        logger.warning("%s cannot run on %r here%s; it runs on %r", component, requested, needs, able[0])
    return able[0]


def flash_usable(device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether FlashAttention is installed and runs on a device.

    Args:
        device: Where a model will run.
        dtype: What its matrices are multiplied in: the type of its parameters, or that of autocast.
    """
    if find_spec("flash_attn") is None:
        return False
    import torch
    from transformers.utils.import_utils import is_flash_attn_2_available

    device = torch.device(device)
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY and is_flash_attn_2_available()
