"""Takes a stage's wrapping off its model, so that the next one can be put on."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from speechlmm_train.parallel.gather import gather
from speechlmm_train.parallel_names import stage_of

_LEFT_BEHIND = ("_z3_optimizer", "_hp_mapping", "_zero_optimizer")


def release(model: nn.Module, wrapped: Any) -> None:
    """Ends what wraps a model; its weights stay what they are. Every process has to call it.

    What DeepSpeed trains in fp16 is in full precision again afterwards, and on the host, where there is room for it.

    Args:
        model: The model.
        wrapped: What trained it: the model itself, torch's DDP, or DeepSpeed's engine.
    """
    _bare(model)
    destroy = getattr(wrapped, "destroy", None)
    if wrapped is model or destroy is None:
        return
    for parameter in model.parameters():
        if parameter.dtype == torch.float16:
            parameter.grad = None
            parameter.data = gather(parameter).to("cpu", torch.float32)
    destroy()
    _forget_deepspeed()
    for parameter in model.parameters():
        for name in _LEFT_BEHIND:
            if hasattr(parameter, name):
                delattr(parameter, name)


def abandon(model: nn.Module, parallel: str) -> None:
    """Has libraries forget a model that they failed to wrap; any process may call it alone.

    Args:
        model: The model, whose weights may be anywhere.
        parallel: How it was to be spread.
    """
    _bare(model)
    if stage_of(parallel) is not None:
        _forget_deepspeed()


def _bare(model: nn.Module) -> None:
    # Mixed precision laid a cast over the model's own `forward`.
    for name in ("forward", "_original_forward"):
        model.__dict__.pop(name, None)
    if hasattr(model, "_is_accelerate_prepared"):
        del model._is_accelerate_prepared


def _forget_deepspeed() -> None:
    """What accelerate and transformers remember of DeepSpeed outlasts it."""
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    unset_hf_deepspeed_config()
