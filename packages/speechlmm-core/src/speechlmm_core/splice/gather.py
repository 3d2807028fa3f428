"""Input embeddings of a batch by one gather, and the compaction of media whose lengths only the device knows.

Shapes: R rows, N positions a row, S samples, B media of one input, T frames, D hidden, M targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from speechlmm_core.errors import ConfigError
from speechlmm_core.features import Features


def splice(text_embeds: Tensor, features: Sequence[Features], plan: Mapping[str, Any]) -> Tensor:
    """Puts adapted frames into their places among the text embeddings.

    Args:
        text_embeds: (R, N, D) embeddings of the batch's `input_ids` as they were planned.
        features: Each input's frames (B, T, D), in the plan's input order; (0, 0, D) for an input without media.
        plan: The batch's `splice`.

    Returns:
        (R, N, D) input embeddings, shaped like ``plan["base"]``. No value is read from the device.

    Raises:
        ConfigError: An adapter of known lengths returned fewer frames than it declares.
    """
    base: Tensor = plan["base"]
    D = text_embeds.shape[-1]
    parts = [text_embeds.reshape(-1, D)]
    for j, (one, num_frames) in enumerate(zip(features, plan["num_frames"], strict=True)):
        B, T, _ = one.values.shape
        if B == 0 or num_frames == 0:
            continue
        values = one.values[:, :num_frames].to(text_embeds.dtype)
        if num_frames > T:
            if plan["exact"][j]:
                raise ConfigError(
                    f"input {j} returned {T} frames where its configuration declares {num_frames}; the encoder's or "
                    "the adapter's output_lengths disagrees with its module"
                )
            values = F.pad(values, (0, 0, 0, num_frames - T))
        parts.append(values.reshape(-1, D))  # (B*T, D)
    additive: Tensor | None = plan.get("additive")
    if additive is not None:
        parts.append(text_embeds.new_zeros(1, D))
    if len(parts) == 1 and base.shape == text_embeds.shape[:2] and "compacted" not in plan:
        return text_embeds
    table = torch.cat(parts)  # (rows, D)
    out = table.index_select(0, base.flatten())
    if additive is not None:
        out = out + table.index_select(0, additive.flatten())
    return out.view(*base.shape, D)  # (R, N, D)


def compact(batch: Mapping[str, Any], lengths: Sequence[Tensor | None]) -> dict[str, Any]:
    """Drops the positions that a plan reserved for frames which did not come.

    Where lengths depend on the content (CIF, CTC compression), the plan holds an upper bound. Padded batches keep
    their width and nothing is read from the device; packed ones shrink, for which the new lengths are read once.
    Splice with the embeddings of the *original* `input_ids`: the indices go on pointing at them.

    Args:
        batch: A planned batch.
        lengths: (B,) true lengths of each input's media, in the plan's input order; None where they are exact.

    Returns:
        The batch with everything that depends on positions replaced; as it came where no input is dynamic. A target
        that loses every position before it gets the id -100, which the loss leaves out.
    """
    dynamic = batch.get("dynamic")
    if dynamic is None:
        return dict(batch)
    base: Tensor = batch["splice"]["base"]
    N = base.shape[1]
    keep = dynamic["sample"] >= 0  # (R, N)
    for j in dynamic["inputs"]:
        actual = lengths[j]
        if actual is None or actual.shape[0] == 0:
            continue
        mine = dynamic["input"] == j
        row = torch.where(mine, dynamic["row"], 0)
        keep = keep & ~(mine & (dynamic["frame"] >= actual.to(base.device)[row]))
    left = dynamic["padding_side"] == "left" and "segments" not in batch
    # Kept positions first (or last, where padding is on the left), in their old order.
    order = torch.argsort(keep.long() if left else (~keep).long(), dim=1, stable=True)  # (R, N)
    place = torch.argsort(order, dim=1)  # (R, N): where each old position went
    kept = keep.gather(1, order)
    sample = torch.where(kept, dynamic["sample"].gather(1, order), -1)
    width = N
    out = dict(batch)
    if "segments" in batch:
        counts = torch.zeros(dynamic["num_samples"] + 1, dtype=torch.long, device=base.device)
        counts = counts.scatter_add(0, dynamic["sample"][0] + 1, keep[0].long())[1:]  # (S,)
        bounds = F.pad(counts.cumsum(0), (1, 0))
        segment_lengths = counts.tolist()
        width = sum(segment_lengths)
        order, kept, sample = order[:, :width], kept[:, :width], sample[:, :width]
        out["segments"] = {"cu_seqlens": bounds.to(torch.int32), "lengths": segment_lengths}
        out["position_ids"] = torch.arange(width, device=base.device)[None] - bounds[sample]  # (1, N')
    else:
        out["attention_mask"] = kept.long()
        out["position_ids"] = (kept.long().cumsum(1) - 1).clamp(min=0) * kept
    pad = torch.full_like(base[:, :width], dynamic["pad_token_id"])
    out["input_ids"] = torch.where(kept, batch["input_ids"].gather(1, order), pad)
    out["splice"] = {**batch["splice"], "compacted": True, "base": base.gather(1, order)}
    if "additive" in batch["splice"]:
        out["splice"]["additive"] = batch["splice"]["additive"].gather(1, order)
    target = batch["supervised"]["positions"] + 1  # (M,) old places of the targets themselves
    row = target // N if N else target
    new = row * width + place.flatten()[target]  # (M,)
    first = out["position_ids"].flatten()[new] == 0
    out["supervised"] = {
        "positions": torch.where(first, new, new - 1),
        "ids": torch.where(first, -100, batch["supervised"]["ids"]),
    }
    del out["dynamic"]
    return out
