# pyright: strict
"""What decides the sequence of batches, so that a run that goes on can tell whether it is still the same one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_train.batching.plan import BatchPlan

_HASHED = {
    "lengths": "the lengths of the examples",
    "rows": "which rows the datasets hold",
    "members": "which dataset and task the examples belong to",
    "quotas": "how many examples of each group an epoch holds",
}


def sequence_of(plan: BatchPlan) -> dict[str, Any]:
    """What decides a plan's sequence, as JSON: all that it is a function of. Large things are hashed."""
    budget, mix = plan.budget, plan.mix
    return {
        "examples": len(plan.positions),
        "lengths": _hash(plan.positions, plan.frames),
        "rows": plan.rows,
        "groups": [f"{group.dataset} {group.task}".strip() for group in mix.groups],
        "members": _hash(mix.members),
        "mixing": mix.mixing,
        "shares": [round(float(share), 6) for share in mix.asked],
        "quotas": _hash(mix.quotas),
        "token_budget": None if math.isinf(budget.tokens) else int(budget.tokens),
        "frame_budget": None if math.isinf(budget.frames) else int(budget.frames),
        "batch_size": budget.batch_size,
        "packed": budget.packed,
        "batch_window": plan.window,
        "micro_batches_per_step": plan.micro_batches_per_step,
        "seed": plan.seed,
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two sequences, each difference in words."""
    found = [name for name in now if before.get(name) != now[name]]
    if "rows" in found and (before.get("rows") is None or now["rows"] is None or "lengths" in found):
        found.remove("rows")  # not noted, or told by the lengths
    # Where there are other examples, all their hashes differ, too, and a budget that follows from their lengths.
    hidden = {*_HASHED, "shares", "frame_budget"} if {"examples", "groups"} & {*found} else set[str]()
    if "lengths" in found and "token_budget" not in found:
        hidden.add("frame_budget")
    if {"shares", "mixing"} & {*found}:
        hidden.add("quotas")
    return [
        _HASHED[name] if name in _HASHED else f"{name} {_word(before.get(name))} → {_word(now[name])}"
        for name in found
        if name not in hidden
    ]


def _word(value: object) -> str:
    return "none" if value is None else str(value).replace("'", "")


def _hash(*arrays: NDArray[Any]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return found.hexdigest()[:16]
