"""One micro-batch forward and backward, as the trainer does it, but for what changes the weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from speechlmm_core.interfaces.objective import can_weigh, weight_at
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.parallel.arguments import mixed_precision
from speechlmm_train.stage_config import ResolvedStage


def stage_weights(model: SpeechLMM, stage: ResolvedStage) -> dict[str, float]:
    """A weight for each objective that a stage gives one, now or later: all that will be computed at once."""
    configured = {name: one.weight for name, one in model.model_config.all_objectives.items()} | stage.objectives
    return {name: weight_at(weight, 1.0) or 1.0 for name, weight in configured.items() if can_weigh(weight)}


def precision(stage: ResolvedStage, device: str) -> AbstractContextManager[Any]:
    """Mixed precision as the stage trains in it."""
    return mixed_precision(stage.training, device)


def checkpoint_activations(model: SpeechLMM, *, on: bool) -> None:
    """Turns gradient checkpointing on or off, as the trainer does."""
    if on:
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.activation_checkpointing_disable()


def forward_backward(
    model: nn.Module, batch: Mapping[str, Any], weights: Mapping[str, float], context: AbstractContextManager[Any]
) -> dict[str, Tensor]:
    """Runs a micro-batch; gradients are added to those that are there.

    Args:
        model: The model.
        batch: The micro-batch, on the model's device.
        weights: Weights of the objectives.
        context: Mixed precision.

    Returns:
        Each objective's mean over this micro-batch.
    """
    means, total = _forward(model, batch, weights, context)
    if total is not None and total.requires_grad:
        total.backward()
    return means


def _forward(
    model: nn.Module, batch: Mapping[str, Any], weights: Mapping[str, float], context: AbstractContextManager[Any]
) -> tuple[dict[str, Tensor], Tensor | None]:
    # Of its own, so that the outputs are gone before the backward pass, as in the trainer.
    with context:
        outputs = model(objective_weights=weights, **batch)
    counts = batch["num_items"]
    losses = {name: loss.sum / max(counts.get(loss.unit, 0), 1) for name, loss in outputs.losses.items()}
    total: Tensor | None = None
    for name, loss in losses.items():
        total = weights[name] * loss if total is None else total + weights[name] * loss
    return {name: loss.detach() for name, loss in losses.items()}, total
