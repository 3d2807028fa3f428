"""What transcripts decide in a batch: the targets of objectives, and the frames that adapters make of a medium.

Shapes: B media, U target ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speechlmm_core.config import InputConfig
from speechlmm_core.interfaces.objective import ObjectiveConfig


def planned_frames(towers: InputConfig, encoded: int, target_length: int) -> int:
    """Positions that a medium gets in the language model: the frames that its adapter makes of it, or their bound.

    Args:
        towers: The medium's input.
        encoded: Frames of the encoder.
        target_length: Tokens of its transcript where the adapter is told them, else -1.
    """
    bound = towers.adapter.max_output_lengths(encoded, towers.encoder.frame_rate)
    return min(target_length, bound) if target_length >= 0 and towers.adapter.meets_target_lengths else bound


def pad_targets(
    objective: ObjectiveConfig,
    targets: Sequence[Sequence[int] | None],
    lengths: Tensor,
    counts: dict[str, int],
    name: str,
) -> dict[str, Tensor]:
    """Targets as a padded tensor; media without a transcript, or too short for it, are marked as not valid.

    Args:
        objective: What the targets are for.
        targets: Ids of each medium's target, None where it has no transcript.
        lengths: (B,) frames that the objective has for each.
        counts: Gets `<name>_targets`, `<name>_valid` and `<name>_infeasible`.
        name: The objective's name.

    Returns:
        `ids` (B, U), `lengths` (B,) and `valid` (B,) bool.
    """
    ids = torch.zeros(len(targets), max((len(t) for t in targets if t), default=0), dtype=torch.long)  # (B, U)
    target_lengths = torch.zeros(len(targets), dtype=torch.long)
    valid = torch.zeros(len(targets), dtype=torch.bool)
    for row, (target, frames) in enumerate(zip(targets, lengths.tolist(), strict=True)):
        if target is None or not (target or objective.accepts_empty_targets):
            continue
        if objective.min_frames(list(target)) > frames:
            counts[f"{name}_infeasible"] += 1
            continue
        ids[row, : len(target)] = torch.tensor(target, dtype=torch.long)
        target_lengths[row] = len(target)
        valid[row] = True
        counts[f"{name}_valid"] += 1
        counts[f"{name}_targets"] += len(target)
    return {"ids": ids, "lengths": target_lengths, "valid": valid}
