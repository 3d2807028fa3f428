# pyright: strict
"""What a user's DeepSpeed configuration says that is unknown or contradicts the training. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from speechlmm_core.registry import nearest
from speechlmm_train.parallel_names import stage_of

if TYPE_CHECKING:
    from speechlmm_train.training_config import TrainingConfig

SECTIONS = ("zero_optimization", "bf16", "fp16", "torch_autocast", "data_types", "optimizer", "scheduler")
"""Keys whose values are objects that are looked into."""
KEYS = frozenset(
    {
        *SECTIONS,
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
        *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "communication_data_type"),
        *("prescale_gradients", "gradient_predivide_factor", "disable_allgather", "aio", "disable_python_gc"),
        *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "log_level", "timers"),
        *("comms_logger", "flops_profiler", "tensorboard", "wandb", "csv_monitor", "comet"),
    }
)
"""Keys that are taken. DeepSpeed leaves others unread, or would do with them what the trainer does."""
ZERO_KEYS = frozenset(
    {
        *("stage", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce"),
        *("allgather_partitions", "allgather_bucket_size", "overlap_comm", "load_from_fp32_weights", "sub_group_size"),
        *("offload_param", "offload_optimizer", "cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"),
        *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_max_live_parameters"),
        *("stage3_model_persistence_threshold", "stage3_max_reuse_distance", "stage3_module_granularity_threshold"),
        *("stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"),
        *("stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential", "ignore_unused_parameters"),
        *("round_robin_gradients", "zero_hpz_partition_size", "memory_efficient_linear", "log_trace_cache_warnings"),
    }
)
"""Those of `zero_optimization`."""
SCHEDULES = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
"""DeepSpeed's schedules, as `lr_scheduler_type` calls them."""
_AGREE = "give it as 'auto', or make them agree"


def contradictions(given: Mapping[str, Any], training: TrainingConfig, *, world_size: int, bf16: bool) -> Iterator[str]:
    """What a user's configuration says differently from the training's settings, a line each.

    Args:
        given: The user's configuration.
        training: The settings.
        world_size: Number of processes.
        bf16: Whether it trains in bf16.
    """
    yield from _unknown(given)
    accumulation = training.micro_batches_per_step // world_size
    per_device = training.per_device_train_batch_size
    batch = "micro_batches_per_step"
    wanted: dict[str, tuple[Any, str]] = {
        "zero_optimization.stage": (stage_of(training.parallel), "parallel"),
        "gradient_accumulation_steps": (accumulation, f"{batch} over {world_size} processes"),
        "gradient_clipping": (training.max_grad_norm, "max_grad_norm"),
        "bf16.enabled": (bf16, "bf16"),
        "torch_autocast.enabled": (bf16, "bf16"),
        "fp16.enabled": (bool(training.extras.get("fp16", False)), "fp16"),
        "optimizer.params.lr": (training.learning_rate, "learning_rate"),
        "optimizer.params.weight_decay": (training.weight_decay, "weight_decay"),
        "optimizer.params.betas": ([training.adam_beta1, training.adam_beta2], "adam_beta1 and adam_beta2"),
        "optimizer.params.eps": (training.extras.get("adam_epsilon", 1e-8), "adam_epsilon"),
        "scheduler.params.warmup_max_lr": (training.learning_rate, "learning_rate"),
        "scheduler.params.warmup_min_lr": (0.0, "schedule (it begins at zero)"),
        "scheduler.params.warmup_num_steps": (_warmup(training), "warmup_steps"),
        "scheduler.params.total_num_steps": (training.max_steps, "max_steps"),
    }
    if per_device is not None:
        wanted["train_micro_batch_size_per_gpu"] = (per_device, "per_device_train_batch_size")
        wanted["train_batch_size"] = (
            per_device * accumulation * world_size,
            f"per_device_train_batch_size and {batch}",
        )
    for key, (value, setting) in wanted.items():
        found = _at(given, key)
        if found in (None, "auto") or found == value:
            continue
        yield f"{key} is {found!r}, and training's {setting} says {value!r}; {_AGREE}"
    if per_device is None:
        for key in ("train_micro_batch_size_per_gpu", "train_batch_size"):
            if (found := _at(given, key)) not in (None, "auto"):
                yield (
                    f"{key} is {found!r}, but the batch is set by token_budget or frame_budget; give it as 'auto', or "
                    "set training.per_device_train_batch_size"
                )
    yield from _otherwise_optimised(given, training)
    yield from _offloaded(given, training)
    yield from _lower_precision(given)


def _unknown(given: Mapping[str, Any]) -> Iterator[str]:
    """Keys that nothing reads, and sections that are none."""
    yield from (f"unknown key {key!r}{nearest(key, sorted(KEYS))}" for key in given if key not in KEYS)
    for name in SECTIONS:
        section = given.get(name, {})
        if not isinstance(section, Mapping):
            yield f"{name} is {section!r}; expected an object, as in {_EXAMPLES.get(name, '{}')}"
    for name, known in (("zero_optimization", ZERO_KEYS), ("bf16", frozenset({"enabled"}))):
        section = given.get(name)
        if isinstance(section, Mapping):
            for key in cast("Mapping[str, Any]", section):
                if key not in known:
                    yield f"unknown key '{name}.{key}'{nearest(key, sorted(known))}"


_EXAMPLES = {
    "zero_optimization": '{"stage": 2}',
    "bf16": '{"enabled": "auto"}',
    "fp16": '{"enabled": "auto"}',
    "torch_autocast": '{"enabled": true}',
}


def _warmup(training: TrainingConfig) -> int | None:
    """Steps of the warm-up; None where a share of steps that are not known."""
    if training.warmup_steps >= 1 or not training.warmup_steps:
        return int(training.warmup_steps)
    return None if training.max_steps is None else math.ceil(training.warmup_steps * training.max_steps)


def _otherwise_optimised(given: Mapping[str, Any], training: TrainingConfig) -> Iterator[str]:
    kind, optim = _at(given, "optimizer.type"), str(training.extras.get("optim", "adamw_torch"))
    if kind is not None and (str(kind).lower() != "adamw" or not optim.startswith("adamw")):
        yield f"optimizer.type is {kind!r}, but the optimiser is training.optim ({optim!r}); leave it out"
    kind, shape = _at(given, "scheduler.type"), training.lr_scheduler_type
    if kind is not None and (SCHEDULES.get(str(kind)) != shape or training.restarts):
        yield (
            f"scheduler.type is {kind!r}, but the schedule is training.lr_scheduler_type ({shape!r}, with lr_min and "
            "restarts where they are set); leave it out"
        )


def _offloaded(given: Mapping[str, Any], training: TrainingConfig) -> Iterator[str]:
    offloads, stage = training.parallel.endswith("_offload"), stage_of(training.parallel)
    for key, expected in (("offload_optimizer", offloads), ("offload_param", offloads and stage == 3)):
        place = f"zero_optimization.{key}"
        device = _at(given, f"{place}.device")
        old = _at(given, "zero_optimization.cpu_offload" + key.removeprefix("offload").replace("_optimizer", ""))
        if device == "nvme":
            yield f"{place}.device is 'nvme': states on NVMe disks cannot be part of our checkpoints; offload to 'cpu'"
        elif (device == "cpu" or old is True) and not expected:
            name = "zero3_offload" if key == "offload_param" else f"zero{max(stage or 0, 2)}_offload"
            yield f"{place} is 'cpu', and training's parallel says {training.parallel!r}; set training.parallel={name}"
        elif (device not in (None, "cpu") or old is False) and expected:
            yield (
                f"{place} is {device or 'none'!r}, and training's parallel says {training.parallel!r}; set "
                f"training.parallel=zero{stage}, or leave it out"
            )


def _lower_precision(given: Mapping[str, Any]) -> Iterator[str]:
    """Weights, and sums of gradients, are in fp32 in every way to share a training."""
    expected: dict[str, tuple[object, ...]] = {
        "torch_autocast.dtype": ("auto", "torch.bfloat16", "bfloat16"),
        "torch_autocast.lower_precision_safe_modules": ([],),
        "data_types.grad_accum_dtype": ("auto", "float32", "fp32"),
    }
    for key, taken in expected.items():
        found = _at(given, key)
        if found is not None and found not in taken:
            yield f"{key} is {found!r}; expected {taken[-1]!r}, as weights and gradients are in fp32; leave it out"


def _at(config: Mapping[str, Any], key: str) -> Any:
    here: Any = config
    for part in key.split("."):
        if not isinstance(here, Mapping):
            return None
        here = cast("Mapping[str, Any]", here).get(part)
    return here
