"""How processes share weights, gradients and the optimiser's states, in bytes of each process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from speechlmm_core.checkpoint.fill import full_shape
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.parallel.arguments import use_bf16
from speechlmm_train.parallel.deepspeed_config import preset, zero_section
from speechlmm_train.parallel.wrap import blocks, untrained
from speechlmm_train.parallel_names import mode_of, stage_of
from speechlmm_train.training_config import TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

STATES = {"sgd": 0.0, "adafactor": 0.05, "rmsprop": 4.0, "adagrad": 4.0, "lion": 4.0}
"""Bytes of optimiser states for a parameter in fp32, by the beginning of the optimiser's name; else AdamW's eight.

Adafactor keeps a row and a column of each matrix (Shazeer and Stern, 2018, arXiv 1804.04235)."""
EIGHT_BIT = 4
"""Eight-bit optimisers keep a quarter of that (Dettmers et al., 2021, arXiv 2110.02861)."""
FP32 = 4
FOUR_BIT_BYTES = 0.5 + 4 / 64
"""Of a weight in NF4: four bits, and an fp32 scale for each block of 64."""


@dataclass(frozen=True)
class Split:
    """Bytes of one process."""

    weights: int
    gradients: int
    optimiser: int
    workspace: int
    host: int


def split_of(
    model: SpeechLMM,
    quantised: Mapping[str, int],
    training: TrainingConfig,
    world_size: int,
    *,
    base: Path | None = None,
) -> Split:
    """What one of the processes holds.

    Args:
        model: The model, frozen as it will be trained.
        quantised: Bytes of the parameters that will be quantised, by name.
        training: The stage's `training`.
        world_size: Number of processes.
        base: Folder where a relative path of `deepspeed_config` starts.
    """
    mode, stage = mode_of(training.parallel, world_size), stage_of(training.parallel) or 0
    half = use_bf16(training.bf16) or bool(training.extras.get("fp16"))
    still = tuple(f"{name}." for name in untrained(model)) if mode in ("zero", "fsdp2") else ()
    names = {name: parameter for name, parameter in model.named_parameters() if name not in quantised}
    whole = _numel(parameter for name, parameter in names.items() if name.startswith(still))
    spread = _numel(names.values()) - whole
    trained = _numel(parameter for parameter in names.values() if parameter.requires_grad)
    # In bf16 weights stay in fp32 in every mode; in fp16 DeepSpeed casts what it spreads.
    cast = mode == "zero" and bool(training.extras.get("fp16"))
    width = 2 if cast else FP32
    # DeepSpeed's stages 1 to 3 step on a copy of the weights, also where that is in fp32 as they are.
    copied = trained * FP32 if mode == "zero" and (stage or cast) else 0
    weights = whole * FP32 + sum(quantised.values())
    gradients, states = trained * width, trained * state_bytes(training) + copied
    workspace = max((parameter.numel() * (2 if half else FP32) for parameter in _members(model, quantised)), default=0)
    if mode == "ddp":
        workspace += gradients  # the buckets in which they are sent
    if mode == "zero" and stage:
        workspace += _buckets(training, stage, base) * width
    if mode == "fsdp2" or stage == 3:
        units = [_numel(block.parameters()) for block in blocks(model)]
        gathered = spread - sum(units)  # all but the blocks, which are gathered one after the other
        workspace += gathered * width + 2 * max(units) * (2 if half and mode == "fsdp2" else width)
        weights += spread * width // world_size
    else:
        weights += spread * width
    if mode == "fsdp2" or stage >= 2:
        gradients //= world_size
    if mode == "fsdp2" or stage >= 1:
        states /= world_size
    if not training.parallel.endswith("_offload"):
        return Split(weights, gradients, round(states), workspace, 0)
    # The host holds each sum of gradients twice (stage 3: in its place and flat; stage 2: with the weights to send),
    # and stage 2 once more what it accumulates. Stage 3's weights are there as well.
    accumulates = stage == 2 and training.micro_batches_per_step > world_size
    host = round(states) + gradients * (3 if accumulates else 2)
    if stage == 3:
        host += spread * width // world_size
        weights -= spread * width // world_size
    return Split(weights, 0, 0, workspace, host)


def _buckets(training: TrainingConfig, stage: int, base: Path | None) -> int:
    """Numbers in DeepSpeed's buckets, which gradients are summed up in."""
    zero, own = zero_section(training, base=base), preset(training.parallel)["zero_optimization"]
    size = zero["reduce_bucket_size"]
    size = int(own["reduce_bucket_size"] if isinstance(size, str) else size)
    # Stages 1 and 2 fill one while they send the other.
    return 2 * size if stage < 3 and zero.get("overlap_comm") is True else size


def _members(model: SpeechLMM, names: Mapping[str, int]) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if name in names]


def state_bytes(training: TrainingConfig) -> float:
    """Bytes of optimiser states for each trained parameter."""
    optim = str(training.extras.get("optim", "adamw"))
    found = next((size for name, size in STATES.items() if optim.removeprefix("paged_").startswith(name)), 8.0)
    return found / EIGHT_BIT if "8bit" in optim else found


def quantised_bytes(model: SpeechLMM, training: TrainingConfig) -> dict[str, int]:
    """Bytes of the parameters that `load_in_4bit` or `load_in_8bit` quantises, by name."""
    if not (training.load_in_4bit or training.load_in_8bit):
        return {}
    body = model.text_decoder.model
    head = body.get_output_embeddings()
    found: dict[str, int] = {}
    for name, layer in body.named_modules():
        if not isinstance(layer, nn.Linear) or layer is head or "lora_" in name:
            continue
        count, rows = layer.weight.numel(), layer.weight.shape[0]
        size = round(count * FOUR_BIT_BYTES) if training.load_in_4bit else count + 4 * rows
        found[f"text_decoder.model.{name}.weight"] = size
    return found


def _numel(parameters: Iterable[Tensor]) -> int:
    # Also of those that are spread already, of which DeepSpeed leaves an empty tensor.
    return sum(full_shape(parameter).numel() for parameter in parameters)
