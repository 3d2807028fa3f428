"""The splice by one gather against a loop over samples, forward and backward, from batch 1 to 64."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from _bench import compare, report

from speechlmm_core.features import Features
from speechlmm_core.splice.gather import splice
from speechlmm_core.splice.plan import SampleLayout, plan_batch

PROMPT, ANSWER = 24, 20


def layout(frames: int) -> SampleLayout:
    """A prompt, a medium and an answer."""
    n = PROMPT + frames + ANSWER
    medium = np.full(n, -1, np.int32)
    medium[PROMPT : PROMPT + frames] = 0
    frame = np.zeros(n, np.int32)
    frame[PROMPT : PROMPT + frames] = np.arange(frames)
    supervised = np.arange(n) >= PROMPT + frames
    return SampleLayout(np.full(n, 5, np.int64), supervised, medium, frame, ["audio"], [frames])


def loop(text: Tensor, values: Tensor, lengths: list[int], packed: bool) -> Tensor:
    """Sample by sample: cut the text at its placeholder and put the frames between."""
    rows: list[Tensor] = []
    start = 0
    for b, frames in enumerate(lengths):
        row = text[0, start : start + PROMPT + frames + ANSWER] if packed else text[b]
        start += PROMPT + frames + ANSWER
        rows.append(torch.cat([row[:PROMPT], values[b, :frames], row[PROMPT + frames :]]))
    return torch.cat(rows)[None] if packed else torch.stack(rows)


def measure(B: int, D: int, repeats: int, *, packed: bool) -> dict[str, Any]:
    """Times both for one batch size."""
    rng = np.random.default_rng(0)
    lengths: list[int] = rng.integers(20, 80, B).tolist()
    plan = plan_batch([layout(n) for n in lengths], packed=packed, pad_token_id=0, input_order=["audio"])
    text = torch.randn(*plan["input_ids"].shape, D, requires_grad=True)
    values = torch.randn(B, max(lengths), D, requires_grad=True)
    features = [Features(values, torch.tensor(lengths))]
    weight = torch.randn_like(text)

    def run(spliced: Tensor) -> tuple[Tensor, ...]:
        return (spliced, *torch.autograd.grad((spliced * weight).sum(), (text, values)))

    def gathered() -> tuple[Tensor, ...]:
        return run(splice(text, features, plan["splice"]))

    def looped() -> tuple[Tensor, ...]:
        return run(loop(text, values, lengths, packed))

    for one, other in zip(gathered(), looped(), strict=True):
        torch.testing.assert_close(one, other)
    forward = compare(
        {
            "gather": lambda: splice(text, features, plan["splice"]),
            "loop": lambda: loop(text, values, lengths, packed),
        },
        repeats,
    )
    both = compare({"gather": gathered, "loop": looped}, repeats)
    ratios = {"forward_ratio": forward["loop"] / forward["gather"], "ratio": both["loop"] / both["gather"]}
    return {"batch": B, "packed": packed, **ratios, "forward_s": forward, "forward_backward_s": both}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=31)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(B, args.width, args.repeats, packed=p) for p in (True, False) for B in (1, 2, 4, 8, 16, 32, 64)]
    report("splice", {"width": args.width, "results": results})


if __name__ == "__main__":
    main()
