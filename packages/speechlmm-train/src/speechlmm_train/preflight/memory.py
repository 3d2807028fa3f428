"""Predicts the memory of a training from its structure: a step is run on tensors that have shapes and no content.

What a step keeps for its backward pass, what gradient checkpointing and a chunked loss save, and what is alive at the
same time are thereby measured and not modelled. Weights, gradients and the optimiser's states follow from the
parameters and from how processes share them (Rajbhandari et al., 2020, arXiv 1910.02054).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_iter

from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.config import RunConfig
from speechlmm_train.preflight.fake import ShapeRules, fake_batch, make_fake
from speechlmm_train.preflight.sharding import Split, quantised_bytes, split_of
from speechlmm_train.preflight.step import checkpoint_activations, forward_backward, precision, stage_weights
from speechlmm_train.preflight.tracker import StorageTracker
from speechlmm_train.preflight.tryout import device_of
from speechlmm_train.stage_config import ResolvedStage
from speechlmm_train.trainer.checks import freeze_for
from speechlmm_train.trainer.initial_model import planned_model


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process allocates through torch at the peak of a step.

    What a GPU's driver and libraries take for themselves (about half a GiB) and what lies idle between allocations come
    on top.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    """What a micro-batch takes beyond the rest, at its worst moment."""
    buffers: int
    """Tensors of the model that are no parameters, and micro-batches: on a GPU one, on a CPU all of a step."""
    workspace: int
    """Buckets and gathered weights of processes that share a training, and weights that are dequantised."""
    host: int = 0
    """Bytes in the host's memory, with `*_offload`; not part of `total`."""

    @property
    def total(self) -> int:
        """All of a device's bytes."""
        return self.weights + self.gradients + self.optimiser + self.activations + self.buffers + self.workspace


class StageModel:
    """A stage's model without content, on which micro-batches are measured.

    Args:
        config: The run.
        stage: The stage.
        base: Folder where a relative path of `deepspeed_config` starts.

    Raises:
        ConfigError: The components do not fit together, or a name matches no module.
    """

    def __init__(self, config: RunConfig, stage: ResolvedStage, *, base: Path | None = None) -> None:
        self.stage, self.base = stage, base
        self.model: SpeechLMM = planned_model(config, flash_attention=False)
        freeze_for(self.model, stage)
        checkpoint_activations(self.model, on=stage.training.gradient_checkpointing)
        self.quantised = quantised_bytes(self.model, config.training)
        for name, parameter in self.model.named_parameters():
            if name in self.quantised:
                parameter.requires_grad_(False)
        self.mode = FakeTensorMode()
        make_fake(self.model, self.mode)
        self.model.train()

    def estimate(
        self, batches: Sequence[Mapping[str, Any]], *, world_size: int, on_gpu: bool | None = None
    ) -> MemoryEstimate:
        """The memory of a step.

        Args:
            batches: The worst micro-batches; the tensors in them have content, but the model does not.
            world_size: Processes that share the training.
            on_gpu: Whether it runs on GPUs; by default as it would on this machine.
        """
        training = self.stage.training
        accumulated = max(training.micro_batches_per_step // world_size, 1)
        split = split_of(self.model, self.quantised, training, world_size, base=self.base)
        gradient_bytes = sum(_bytes(p) for p in self.model.parameters() if p.requires_grad)
        activations = max((self._activations(one, accumulated) for one in batches), default=0) - gradient_bytes
        if on_gpu is None:
            on_gpu = device_of(training).type != "cpu"
        # All micro-batches of a step are fetched at once; a GPU gets each when it is its turn.
        held = max((_batch_bytes(one) for one in batches), default=0) * (1 if on_gpu else accumulated)
        buffers = sum(_bytes(buffer) for buffer in self.model.buffers()) + held
        return _estimate(split, max(activations, 0), buffers)

    def _activations(self, batch: Mapping[str, Any], accumulated: int) -> int:
        """Bytes at the worst moment of a micro-batch, gradients included, parameters and the batch itself not."""
        weights = stage_weights(self.model, self.stage)
        own = fake_batch(batch, self.mode)
        known = [*self.model.parameters(), *self.model.buffers(), *_tensors(own)]
        context = precision(self.stage, "cpu")
        with self.mode, ShapeRules(), StorageTracker(known) as tracker:
            # Beside the gradients of the micro-batches before, where there are some.
            for _ in range(min(accumulated, 2)):
                forward_backward(self.model, own, weights, context)
            peak = tracker.peak
            for parameter in self.model.parameters():
                parameter.grad = None
        return peak


def predict_memory(
    config: RunConfig, stage: ResolvedStage, *, world_size: int, batches: Sequence[Mapping[str, Any]]
) -> MemoryEstimate:
    """The memory of each process at the peak of a stage's steps.

    Args:
        config: The run.
        stage: One of its stages.
        world_size: Processes that share the training as `training.parallel` says.
        batches: The worst micro-batches, collated.

    Raises:
        ConfigError: The components do not fit together, or a name matches no module.
    """
    return StageModel(config, stage).estimate(batches, world_size=world_size)


def changed(stage: ResolvedStage, **training: Any) -> ResolvedStage:
    """The stage with other values in its `training`."""
    return stage.model_copy(update={"training": stage.training.model_copy(update=training)})


def shared_otherwise(estimate: MemoryEstimate, model: StageModel, parallel: str, world_size: int) -> MemoryEstimate:
    """The estimate, were the processes to share the training another way."""
    training = model.stage.training.model_copy(update={"parallel": parallel})
    split = split_of(model.model, model.quantised, training, world_size, base=model.base)
    return _estimate(split, estimate.activations, estimate.buffers)


def _estimate(split: Split, activations: int, buffers: int) -> MemoryEstimate:
    return MemoryEstimate(
        weights=split.weights,
        gradients=split.gradients,
        optimiser=split.optimiser,
        activations=activations,
        buffers=buffers,
        workspace=split.workspace,
        host=split.host,
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]


def _batch_bytes(batch: Mapping[str, Any]) -> int:
    return sum(_bytes(tensor) for tensor in _tensors(dict(batch)))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def device_memory() -> int | None:
    """Bytes of this machine's first GPU; None where there is none."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
