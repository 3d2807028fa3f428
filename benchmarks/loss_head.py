"""The chunked loss head against full logits: peak memory above weights and hidden states, gradients, time.

Full logits are 4 GiB at 8,192 positions and 131,072 tokens, and the full way holds about three times that at its peak;
`--positions` shrinks the problem where that does not fit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from _bench import compare, report

from speechlmm_core.losses.chunked_ce import chunked_cross_entropy


def inputs(M: int, V: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (M, D), head (V, D) and targets (M,)."""
    torch.manual_seed(0)
    hidden = torch.randn(M, D).requires_grad_()
    weight = torch.randn(V, D).mul_(D**-0.5).requires_grad_()
    return hidden, weight, torch.randint(0, V, (M,))


def full(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The loss from all logits at once."""
    return F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")


WAYS = {"chunked": chunked_cross_entropy, "full": full}


def resident_peak() -> int:
    """The most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step(way: str, sizes: tuple[int, int, int]) -> dict[str, float]:
    """One loss with its backward pass: the bytes that it took, and norms that stand for the gradients."""
    torch.set_num_threads(1)
    small = inputs(2, 3, 4)
    WAYS[way](*small).backward()  # libraries load their buffers before counting starts
    hidden, weight, targets = inputs(*sizes)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    loss = WAYS[way](hidden, weight, targets)
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return {
        "bytes": resident_peak() - before,
        "loss": loss.item(),
        "hidden_grad_norm": hidden.grad.norm().item(),
        "weight_grad_norm": weight.grad.norm().item(),
    }


def timed(way: str, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    """One loss with its backward pass."""
    for tensor in tensors:
        tensor.grad = None
    WAYS[way](*tensors).backward()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=131072)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only-memory", action="store_true", help="leave the timing out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = (args.positions, args.vocabulary, args.width)
    memory: dict[str, dict[str, float]] = {}
    for way in WAYS:
        # A fresh process each, since a process's peak never sinks.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory[way] = pool.apply(step, (way, sizes))
    for key in ("loss", "hidden_grad_norm", "weight_grad_norm"):
        assert abs(memory["chunked"][key] / memory["full"][key] - 1) < 1e-4, f"{key} differs: {memory}"
    results: dict[str, Any] = {
        "positions": sizes[0],
        "vocabulary": sizes[1],
        "width": sizes[2],
        "peak_mb": {way: round(one["bytes"] / 1e6, 1) for way, one in memory.items()},
        "memory_ratio": memory["full"]["bytes"] / memory["chunked"]["bytes"],
        "norms": memory,
    }
    if not args.only_memory:
        # A sixteenth of the positions: time is linear in them, and both ways fit at once.
        fewer = inputs(max(1, sizes[0] // 16), sizes[1], sizes[2])
        expected = torch.autograd.grad(full(*fewer), fewer[:2])
        for one, other in zip(torch.autograd.grad(chunked_cross_entropy(*fewer), fewer[:2]), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        del expected
        seconds = compare({way: lambda way=way: timed(way, fewer) for way in WAYS}, args.repeats)
        results.update(seconds=seconds, time_ratio=seconds["full"] / seconds["chunked"])
    report("loss_head", results)


if __name__ == "__main__":
    main()
