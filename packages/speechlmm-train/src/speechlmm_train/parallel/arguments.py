"""What `training.parallel` is in transformers' `TrainingArguments`."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState

from speechlmm_core.errors import ConfigError, MissingDependencyError
from speechlmm_train.parallel.deepspeed_config import deepspeed_config
from speechlmm_train.parallel_names import mode_of, stage_of
from speechlmm_train.training_config import TrainingConfig

_FLAG = "ACCELERATE_USE_DEEPSPEED"


def use_bf16(wanted: bool | str) -> bool:
    """Whether to train in bf16.

    Args:
        wanted: What a stage's `bf16` says: `auto` is on where a GPU, or AMX in the CPU, supports it; `gpu` on a
            GPU alone.
    """
    if wanted not in ("auto", "gpu"):
        return bool(wanted)
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return wanted == "auto" and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def mixed_precision(training: TrainingConfig, device: str) -> AbstractContextManager[Any]:
    """Products in half precision where a stage trains with them, whatever it is spread by; nothing else elsewhere.

    Args:
        training: The settings.
        device: Type of the device.
    """
    if use_bf16(training.bf16):
        return torch.autocast(device, torch.bfloat16)
    if training.extras.get("fp16"):
        return torch.autocast(device, torch.float16)
    return nullcontext()


def parallel_arguments(training: TrainingConfig, *, world_size: int, base: Path | None = None) -> dict[str, Any]:
    """Fields of `TrainingArguments`, to be laid over the others.

    Args:
        training: The settings.
        world_size: Number of processes.
        base: Folder where a relative path of `deepspeed_config` starts.

    Raises:
        ConfigError: The settings contradict each other.
        MissingDependencyError: DeepSpeed, or Liger's kernels, are asked for and not installed.
    """
    mode = mode_of(training.parallel, world_size)
    _check_kernels(training, mode)
    found: dict[str, Any] = {"use_liger_kernel": False}
    if training.gradient_checkpointing:
        kwargs = training.extras.get("gradient_checkpointing_kwargs") or {}
        if kwargs.get("use_reentrant"):
            raise ConfigError(
                "training.gradient_checkpointing_kwargs: use_reentrant is true, under which frozen inputs stop "
                "gradients; leave it out"
            )
        found["gradient_checkpointing_kwargs"] = {**kwargs, "use_reentrant": False}
    if mode in ("ddp", "fsdp2") and not torch.cuda.is_available():
        found["use_cpu"] = True  # else accelerate takes each process for the only one
    if mode == "ddp":
        found["ddp_find_unused_parameters"] = False  # the trainer finds them, and once for each kind of micro-batch
    if mode == "zero":
        found |= _zero(training, world_size=world_size, base=base)
    return found


def _zero(training: TrainingConfig, *, world_size: int, base: Path | None) -> dict[str, Any]:
    stage = stage_of(training.parallel)
    if training.extras.get("fp16") and stage in (0, 3):
        # Stage 0 then neither clips nor has states that could be saved; stage 3 takes weights that it loads as fp32.
        raise ConfigError(
            f"training.fp16: it does not go with parallel {training.parallel!r}; use bf16, or zero1, zero2 or ddp"
        )
    bf16 = use_bf16(training.bf16)
    config = deepspeed_config(training, world_size=world_size, bf16=bf16, base=base)
    config.pop("bf16", None)
    if bf16:
        # Weights stay in fp32 and products are in bf16, as in every other mode.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    if torch.cuda.is_available() and training.extras.get("use_cpu"):
        raise ConfigError(
            "training.use_cpu: DeepSpeed takes the GPU where there is one; hide it (CUDA_VISIBLE_DEVICES=), or use "
            "ddp or fsdp2"
        )
    batch = training.per_device_train_batch_size or 1
    found: dict[str, Any] = {"deepspeed": config, "bf16": False, "use_cpu": False, "per_device_train_batch_size": batch}
    if stage == 0:
        found["max_grad_norm"] = 0.0  # the trainer clips: here, DeepSpeed does and does not tell the norm
    if not torch.cuda.is_available():
        found["accelerator_config"] = {"use_configured_state": True}
    return found


def configure_state(values: dict[str, Any]) -> None:
    """Tells accelerate of the processes, where it cannot tell by itself: DeepSpeed on CPUs.

    Args:
        values: Fields of `TrainingArguments`, which are about to be made.
    """
    if "deepspeed" not in values or torch.cuda.is_available():
        return
    AcceleratorState._reset_state(reset_partial_state=True)
    before = os.environ.get(_FLAG)
    os.environ[_FLAG] = "true"
    try:
        PartialState(backend="gloo")
    finally:
        if before is None:
            del os.environ[_FLAG]
        else:
            os.environ[_FLAG] = before


def _check_kernels(training: TrainingConfig, mode: str) -> None:
    if training.extras.get("torch_compile") and mode in ("zero", "fsdp2"):
        raise ConfigError(
            f"training.torch_compile: it cannot follow a model that parallel {training.parallel!r} spreads over "
            "processes; use ddp, or leave it out"
        )
    if not training.extras.get("use_liger_kernel"):
        return
    if not torch.cuda.is_available():
        raise ConfigError("training.use_liger_kernel: Liger's kernels run on a GPU, and there is none; leave it out")
    if find_spec("liger_kernel") is None:
        raise MissingDependencyError(
            "training.use_liger_kernel needs liger-kernel, which is not installed: pip install liger-kernel"
        )
