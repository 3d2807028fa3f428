"""Turns a stage's configuration into transformers' `TrainingArguments`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from speechlmm_core.attention.choice import flash_usable
from speechlmm_core.errors import ConfigError
from speechlmm_train.parallel.arguments import configure_state, parallel_arguments, use_bf16
from speechlmm_train.stage_config import ResolvedStage
from speechlmm_train.trainer.schedule import schedule_arguments
from speechlmm_train.training_config import TrainingConfig

_OF_PROCESSES = ("deepspeed", "accelerator_config")
"""Arguments with which transformers looks for the processes of a training as they are made."""


def can_flash(training: TrainingConfig) -> bool:
    """Whether FlashAttention can run: weights are in fp32, so that it needs mixed precision beside a GPU."""
    half = torch.bfloat16 if use_bf16(training.bf16) else torch.float16 if training.extras.get("fp16") else None
    return half is not None and flash_usable("cpu" if trains_on_cpu(training) else "cuda", half)


def trains_on_cpu(training: TrainingConfig) -> bool:
    """Whether a training runs on the CPU, though there may be a GPU."""
    return bool(training.extras.get("use_cpu") or parse_flag_from_env("ACCELERATE_USE_CPU"))


def training_arguments(
    stage: ResolvedStage,
    *,
    output_dir: str,
    max_steps: int,
    world_size: int,
    base: Path | None = None,
    planned: bool = False,
) -> TrainingArguments:
    """The arguments of a stage.

    Args:
        stage: The stage.
        output_dir: The output folder.
        max_steps: Steps of the stage.
        world_size: Number of processes.
        base: Folder where a relative path of `deepspeed_config` starts.
        planned: Only try them out, where no processes have met: DeepSpeed, whose configuration is checked, is left out.

    Raises:
        ConfigError: A value is not one that `TrainingArguments` takes, or DeepSpeed's JSON contradicts the others.
        MissingDependencyError: What the training is to run on is not installed.
    """
    training = stage.training
    if training.micro_batches_per_step % world_size:
        raise ConfigError(
            f"training.micro_batches_per_step: got {training.micro_batches_per_step}; expected a multiple of the "
            f"{world_size} processes"
        )
    values: dict[str, Any] = {
        "output_dir": output_dir,
        "max_steps": max_steps,
        "seed": training.seed,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        **({"lr_scheduler_kwargs": kwargs} if (kwargs := schedule_arguments(training)) else {}),
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "max_grad_norm": training.max_grad_norm,
        "gradient_accumulation_steps": training.micro_batches_per_step // world_size,
        "gradient_checkpointing": training.gradient_checkpointing,
        "bf16": use_bf16(training.bf16),
        "dataloader_num_workers": training.num_workers,
        "ddp_timeout": training.ddp_timeout,
        "logging_strategy": "steps",
        "logging_steps": training.logging_steps,
        "save_strategy": "steps" if training.save_steps else "no",
        "save_steps": training.save_steps or 500,
        "eval_strategy": "no",
        "report_to": [],
        "ignore_data_skip": True,
        "remove_unused_columns": False,
        "average_tokens_across_devices": False,
        "disable_tqdm": True,
        "log_level": "warning",
        # A NaN must be seen, and the filter reads the loss back from the device at every micro-batch.
        "logging_nan_inf_filter": False,
        **training.extras,
        **parallel_arguments(training, world_size=world_size, base=base),
    }
    if planned:
        for name in _OF_PROCESSES:
            values.pop(name, None)
    try:
        with warnings.catch_warnings():
            # `bf16` beside a GPU that is not there, and fields on their way out, are not this user's concern.
            warnings.simplefilter("ignore")
            configure_state(values)
            args = TrainingArguments(**values)
            if args.n_gpu > 1:  # one process takes one GPU; several are several processes
                args._n_gpu = 1
            return args
    except (TypeError, ValueError, ImportError) as exc:
        raise ConfigError(f"training: {' '.join(str(exc).split())}") from exc
