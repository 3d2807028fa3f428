"""Sends the largest micro-batches of a stage through the real model, forward and backward, before anything is trained.

Out-of-memory, an operation that fails, a loss that is no number and a parameter that gets no gradient come up here, and
not in the middle of an epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from speechlmm_core.data.examples import as_examples
from speechlmm_core.errors import ConfigError, DataError, SpeechLMMError
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.batching.epoch import MicroBatch
from speechlmm_train.preflight.deadline import Deadline
from speechlmm_train.preflight.layout import memory_of
from speechlmm_train.preflight.sharding import split_of
from speechlmm_train.preflight.step import checkpoint_activations, forward_backward, precision, stage_weights
from speechlmm_train.preflight.worst import worst_batches
from speechlmm_train.trainer.arguments import trains_on_cpu
from speechlmm_train.trainer.checks import freeze_for
from speechlmm_train.trainer.stage_data import StageData
from speechlmm_train.training_config import TrainingConfig

logger = logging.getLogger(__name__)

NAMED = 5
"""Parameters that a message names."""
MISHAPS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)
"""What an operation that fails raises."""


_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What drivers and the CPU's allocator say, which have no error of their own for it."""


class OutOfMemoryError(Exception):
    """A micro-batch needs more memory than there is."""


def try_out(
    model: SpeechLMM, stage: StageData, device: torch.device, deadline: Deadline, *, base: Path | None = None
) -> list[str]:
    """Runs a stage's largest micro-batches; to be called within `restore.untouched`.

    Args:
        model: The model, on its device; left frozen as the stage wants it, with gradients.
        stage: The stage.
        device: Where the model is.
        deadline: When no further micro-batch is begun.
        base: Folder where a relative path of `deepspeed_config` starts.

    Returns:
        Warnings: trained parameters that get no gradient.

    Raises:
        ConfigError: The model cannot process a micro-batch, or a loss or a gradient is no number.
        DataError: An example cannot be loaded.
    """
    settings = stage.settings
    freeze_for(model, settings)
    checkpoint_activations(model, on=settings.training.gradient_checkpointing)
    model.zero_grad(set_to_none=True)
    model.train()
    loader = stage.batches(0, rank=0)
    inputs: set[str] = set()
    for number, micro_batch in enumerate(worst_batches(stage.plan)):
        if number and not deadline.left:
            logger.info("stage %r: the time for tries is over after %d micro-batches", settings.name, number)
            break
        batch = loader.load(micro_batch)
        inputs |= batch["media"].keys()
        try:
            run_batch(model, stage, batch, device, world_size=stage.world_size, base=base)
        except OutOfMemoryError as exc:
            raise ConfigError(too_large(stage, batch, micro_batch, device)) from exc
        except SpeechLMMError:
            raise
        except MISHAPS as exc:
            raise ConfigError(unusable(stage, batch, micro_batch, exc)) from exc
    idle = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    return without(idle, model, settings.name, inputs)


def run_batch(
    model: SpeechLMM,
    stage: StageData,
    batch: Mapping[str, Any],
    device: torch.device,
    *,
    world_size: int,
    base: Path | None = None,
) -> None:
    """Runs one micro-batch forward and backward beside as much memory as the optimiser and other processes will take.

    Args:
        model: The model, on its device.
        stage: The stage.
        batch: The micro-batch.
        device: Where the model is.
        world_size: Processes that share the training.
        base: Folder where a relative path of `deepspeed_config` starts.

    Raises:
        OutOfMemoryError: There is too little memory.
        ConfigError: A loss or a gradient is no number.
    """
    moved = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, dict(batch))
    weights = stage_weights(model, stage.settings)
    with memory_named():
        # Stands for what comes with the first step; on a CPU it would only be asked for.
        split = split_of(model, {}, stage.settings.training, world_size, base=base)
        size = split.optimiser + split.workspace if device.type != "cpu" else 0
        ballast = torch.empty(size, dtype=torch.uint8, device=device)
        means = forward_backward(model, moved, weights, precision(stage.settings, device.type))
        bad = [name for name, mean in means.items() if not bool(torch.isfinite(mean))]
        del ballast
    if bad:
        weights = [name for name, one in model.named_parameters() if not bool(torch.isfinite(one).all())]
        raise ConfigError(not_finite(stage.settings.name, ", ".join(bad), weights))
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            raise ConfigError(
                f"stage {stage.settings.name!r}: the gradient of {name} is not finite at the start; see the scale of "
                "its initial weights, and of the data"
            )


def device_of(training: TrainingConfig) -> torch.device:
    """Where this process trains."""
    if trains_on_cpu(training) or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def memory_named() -> Iterator[None]:
    """Calls it by one name where memory runs out.

    Raises:
        OutOfMemoryError: It did.
    """
    try:
        yield
    except torch.OutOfMemoryError as exc:
        raise OutOfMemoryError(str(exc)) from exc
    except (RuntimeError, MemoryError) as exc:
        if isinstance(exc, MemoryError) or any(words in str(exc).lower() for words in _OF_MEMORY):
            raise OutOfMemoryError(str(exc)) from exc
        raise


def _named(stage: StageData, batch: Mapping[str, Any] | None, micro_batch: MicroBatch) -> str:
    examples, sizes = as_examples(stage.examples), ""
    longest = max(micro_batch.indices, key=lambda number: int(stage.plan.positions[number]))
    if batch is not None:
        frames = sum(int(media["encoder_lengths"].sum()) for media in batch["media"].values())
        sizes = f"{batch['input_ids'].numel()} positions, {frames} encoder frames; "
    place = examples.place(int(stage.indices[longest]))
    return f"the micro-batch of {len(micro_batch.indices)} examples ({sizes}the longest is {place})"


def unloadable(stage: StageData, micro_batch: MicroBatch, exc: Exception) -> DataError:
    """The fault of a micro-batch that cannot be loaded, for another reason than its examples."""
    text = " ".join(str(exc).split())
    return DataError(
        f"stage {stage.settings.name!r}: {_named(stage, None, micro_batch)} cannot be loaded: {type(exc).__name__}"
        f"{f': {text[:300]}' if text else ''} (--debug shows where)"
    )


def unusable(stage: StageData, batch: Mapping[str, Any], micro_batch: MicroBatch, exc: Exception) -> str:
    """Says that an operation failed."""
    text = " ".join(str(exc).split()) or type(exc).__name__
    return (
        f"stage {stage.settings.name!r}: the model cannot process {_named(stage, batch, micro_batch)}: {text[:300]}; "
        "see the components' settings, or leave these examples out"
    )


def too_large(stage: StageData, batch: Mapping[str, Any], micro_batch: MicroBatch, device: torch.device) -> str:
    """Says that a micro-batch needs more memory than there is."""
    training = stage.settings.training
    size = next(
        f"training.{name} (now {value})"
        for name in ("token_budget", "per_device_train_batch_size")
        if (value := getattr(training, name))
    )
    more = "" if training.gradient_checkpointing else "training.gradient_checkpointing=true, "
    return (
        f"stage {stage.settings.name!r}: {_named(stage, batch, micro_batch)} needs more memory than there is"
        f"{memory_of(device)}; "
        f"lower {size}, or set {more}data.max_duration_s, or training.parallel=zero3 on several GPUs"
    )


def not_finite(stage: str, losses: str | None, weights: list[str]) -> str:
    """Says that a loss is no number before anything is trained.

    Args:
        stage: The stage.
        losses: The objectives; None where it is the gradient.
        weights: Parameters that hold what is no number.
    """
    told = "the gradient" if losses is None else f"the loss of {losses}"
    what = f"stage {stage!r}: {told} is not finite before the first step"
    if weights:
        more = f" and {len(weights) - NAMED} more" if len(weights) > NAMED else ""
        return f"{what}: {', '.join(weights[:NAMED])}{more} hold NaN or infinity; load undamaged weights"
    return f"{what}, and all weights are finite; see the data's scale, bf16/fp16, and the components' settings"


def without(idle: list[str], model: SpeechLMM, stage: str, inputs: set[str]) -> list[str]:
    """Warns of trained parameters that got no gradient, but for those of inputs that were in no micro-batch.

    Args:
        idle: Names of the parameters.
        model: The model.
        stage: The stage.
        inputs: Inputs that were in some micro-batch.
    """
    absent = tuple(f"{name}_{part}." for name in model.input_names if name not in inputs for part in _TOWERS)
    idle = [name for name in idle if not name.startswith(absent)]
    if not idle or not inputs:
        return []
    more = f" and {len(idle) - NAMED} more" if len(idle) > NAMED else ""
    return [f"stage {stage!r}: no loss reaches {', '.join(idle[:NAMED])}{more}, so that they stay as they are"]


_TOWERS = ("encoder", "adapter")
