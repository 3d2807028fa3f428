"""Which sample each part of a batch belongs to, and how many units of the losses each sample has.

Shapes: B media, S samples, M supervised positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechlmm_core.processor.sample import ProcessedSample


def media_samples(samples: Sequence[ProcessedSample], name: str) -> Tensor:
    """(B,) the sample of each medium of an input."""
    owners = [number for number, sample in enumerate(samples) for own, _ in sample.media if own == name]
    return torch.tensor(owners, dtype=torch.long)


def items_by_sample(
    batch: Mapping[str, Any], inputs: Sequence[str], objectives: Mapping[str, str]
) -> dict[str, NDArray[np.int64]]:
    """The batch's `num_items`, sample by sample (S,), but for targets that are too long for their media.

    On the host: no loss needs them, only those who tell losses apart.

    Args:
        batch: With `samples`, `media` and `targets`.
        inputs: The model's inputs.
        objectives: The input of each objective with targets.
    """
    count: int = batch["samples"]["count"]

    def add_up(index: Tensor, values: Tensor | None = None) -> NDArray[np.int64]:
        weights = None if values is None else values.numpy()
        return np.bincount(index.numpy(), weights, count).astype(np.int64)

    nothing = np.zeros(count, np.int64)
    found = {"supervised_tokens": add_up(batch["samples"]["supervised"])}
    for name in inputs:
        index, media = batch["samples"]["media"].get(name), batch["media"].get(name)
        found[f"{name}_media"] = nothing if index is None else add_up(index)
        found[f"{name}_frames"] = nothing if index is None else add_up(index, media["encoder_lengths"])
    for name, owner in objectives.items():
        index, targets = batch["samples"]["media"].get(owner), batch["targets"].get(name)
        found[f"{name}_targets"] = nothing if targets is None else add_up(index, targets["lengths"])
        found[f"{name}_valid"] = nothing if targets is None else add_up(index, targets["valid"])
    return found
