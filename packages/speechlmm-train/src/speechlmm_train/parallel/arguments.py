"""What `training.parallel` is in transformers' `TrainingArguments`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from speechlmm_core.errors import ConfigError, MissingDependencyError
from speechlmm_train.parallel.deepspeed_config import deepspeed_config
from speechlmm_train.parallel.names import mode_of
from speechlmm_train.training_config import TrainingConfig


def use_bf16(wanted: bool | str) -> bool:
    """Whether to train in bf16; `auto` where a GPU supports it (on a CPU it is slower for small models)."""
    if wanted == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return bool(wanted)


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
    if training.deepspeed_config is not None and mode != "zero":
        raise ConfigError(
            f"training.deepspeed_config: got {training.deepspeed_config!r} with parallel {training.parallel!r}; "
            "set training.parallel to its stage (zero0 to zero3)"
        )
    found: dict[str, Any] = {"use_liger_kernel": False}
    if training.gradient_checkpointing:
        kwargs = training.extras.get("gradient_checkpointing_kwargs") or {}
        if kwargs.get("use_reentrant"):
            raise ConfigError(
                "training.gradient_checkpointing_kwargs: use_reentrant is true, under which frozen inputs stop "
                "gradients; leave it out"
            )
        found["gradient_checkpointing_kwargs"] = {**kwargs, "use_reentrant": False}
    if mode == "ddp":
        found["ddp_find_unused_parameters"] = False  # the trainer finds them, and once for each kind of micro-batch
    if mode == "fsdp2":
        found["save_only_model"] = True  # transformers' own checkpoints, which are never written
    if mode == "zero":
        found |= _zero(training, world_size=world_size, base=base)
    return found


def _zero(training: TrainingConfig, *, world_size: int, base: Path | None) -> dict[str, Any]:
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
    # Without a GPU, accelerate chooses the CPU by itself; told so, it would leave DeepSpeed out.
    return {"deepspeed": config, "bf16": False, "use_cpu": False, "per_device_train_batch_size": batch}


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
