"""The learning rate's cosine that ends above zero, or that starts again.

Warm restarts: Loshchilov and Hutter, 2017, arXiv 1608.03983.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from speechlmm_train.training_config import TrainingConfig

LOWEST, PERIOD = "lowest_share", "steps_between_restarts"


def schedule_arguments(training: TrainingConfig) -> dict[str, Any]:
    """What `TrainingArguments.lr_scheduler_kwargs` carries to `cosine_with_restarts`; nothing for a plain schedule."""
    if not training.restarts:
        return {}
    lowest = (training.lr_min or 0.0) / training.learning_rate
    return {LOWEST: lowest, PERIOD: training.num_steps_between_each_restart}


def is_ours(arguments: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether `lr_scheduler_kwargs` came from `schedule_arguments`."""
    return isinstance(arguments, Mapping) and LOWEST in arguments


def cosine_with_restarts(
    optimizer: Optimizer, arguments: Mapping[str, Any], *, warmup_steps: int, total_steps: int
) -> LambdaLR:
    """A linear warm-up, then half a cosine from each group's rate to its lowest, once or again and again.

    Args:
        optimizer: Holds the peak rates.
        arguments: What `schedule_arguments` made.
        warmup_steps: Steps until the peak.
        total_steps: Steps of the training.
    """
    lowest: float = arguments[LOWEST]
    period = arguments[PERIOD] or max(total_steps - warmup_steps, 1)

    def share(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        if arguments[PERIOD] is None and step >= total_steps:
            return lowest
        return lowest + (1 - lowest) * (1 + math.cos(math.pi * ((step - warmup_steps) % period) / period)) / 2

    return LambdaLR(optimizer, share)
