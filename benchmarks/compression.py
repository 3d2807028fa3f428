"""Integrate-and-fire and the merging of CTC runs, forward and backward, against loops and the batched-matrix form.

The loops are written as one would: `loop` takes the frames apart once (`unbind`), `indexing` asks the tensor for each
frame. The matrix form spreads the weights of all frames over all outputs, (B, N, T), and multiplies.
Goals at 16 x 1500 x 512: at least 5 times as fast as the loop, 100 times as the one that indexes, and 3 times as the
matrix form; equal within 1e-5 of the largest value.

Shapes: B media, T frames, N outputs, D hidden.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from _bench import check_equal, compare, report

from speechlmm_adapters.cif.fire import accumulate, count, fire
from speechlmm_adapters.ctc.adapter import number_runs
from speechlmm_adapters.segments import sum_segments

Way = Callable[[Tensor, Tensor], Tensor]


def integrate(frames: list[Tensor], weights: list[Tensor], size: int) -> Tensor:
    """Integrate-and-fire over the whole batch, one frame at a time: (B, size, D) of (B, D) and (B,) for each frame."""
    state, gathered = torch.zeros_like(frames[0]), torch.zeros_like(weights[0])
    states: list[Tensor] = []
    fires: list[Tensor] = []
    for frame, weight in zip(frames, weights, strict=True):
        fired = gathered + weight >= 1
        need = torch.where(fired, 1 - gathered, weight)
        state = state + need[:, None] * frame
        states.append(state)
        fires.append(fired)
        rest = weight - need
        gathered = torch.where(fired, rest, gathered + weight)
        state = torch.where(fired[:, None], rest[:, None] * frame, state)
    fired = torch.stack(fires, dim=1)  # (B, T)
    rows = [row[mask][:size] for row, mask in zip(torch.stack(states, dim=1), fired, strict=True)]
    return torch.stack([F.pad(row, (0, 0, 0, size - len(row))) for row in rows])  # (B, size, D)


def cif_ways(size: int) -> dict[str, Way]:
    """The ways to integrate; what is left at the end is dropped."""

    def ours(values: Tensor, weights: Tensor) -> Tensor:
        sums, _ = accumulate(weights, 1.0)
        lengths = count(sums, None)
        return fire(values, sums, lengths, int(lengths.max()))

    def loop(values: Tensor, weights: Tensor) -> Tensor:
        return integrate(list(values.unbind(1)), list(weights.unbind(1)), size)

    def indexing(values: Tensor, weights: Tensor) -> Tensor:
        T = values.shape[1]
        return integrate([values[:, t] for t in range(T)], [weights[:, t] for t in range(T)], size)

    def matrix(values: Tensor, weights: Tensor) -> Tensor:
        sums = weights.double().cumsum(1)
        lengths = sums[:, -1].floor()
        ends = torch.minimum(sums, lengths[:, None])[:, None]  # (B, 1, T)
        begins = F.pad(ends[..., :-1], (1, 0))
        interval = torch.arange(int(lengths.max()), device=values.device)[None, :, None]
        overlap = torch.minimum(ends, interval + 1) - torch.maximum(begins, interval)  # (B, N, T)
        return overlap.clamp(min=0).to(values.dtype) @ values

    return {"ours": ours, "loop": loop, "matrix": matrix, "indexing": indexing}


def merge(frames: list[Tensor], probabilities: list[Tensor], begins: list[list[bool]], size: int) -> Tensor:
    """Means of the runs, weighted by probabilities, one frame at a time over the whole batch."""
    state, gathered = torch.zeros_like(frames[0]), torch.zeros_like(probabilities[0])
    states: list[Tensor] = []
    for frame, probability, begin in zip(frames, probabilities, begins, strict=True):
        goes_on = 1 - torch.tensor(begin, dtype=frame.dtype, device=frame.device)
        gathered = gathered * goes_on + probability
        state = state * goes_on[:, None] + probability[:, None] * frame
        states.append(state / gathered[:, None])
    whole = torch.stack(states, dim=1)  # (B, T, D); a run is whole at its last frame
    last = torch.tensor([*begins[1:], [True] * len(begins[0])], device=whole.device).T  # (B, T)
    rows = [row[mask] for row, mask in zip(whole, last, strict=True)]
    return torch.stack([F.pad(row, (0, 0, 0, size - len(row))) for row in rows])  # (B, size, D)


def ctc_ways(labels: Tensor, size: int) -> dict[str, Way]:
    """The ways to merge runs of equal labels (B, T)."""
    changes = F.pad(labels[:, 1:] != labels[:, :-1], (1, 0), value=True)
    begins = changes.T.tolist()

    def ours(values: Tensor, probabilities: Tensor) -> Tensor:
        runs, _ = number_runs(labels, torch.ones_like(labels, dtype=torch.bool), None)
        num_runs = int(runs[:, -1].max()) + 1
        totals = probabilities.new_zeros(len(runs), num_runs).scatter_add(1, runs, probabilities)
        return sum_segments(values, runs, probabilities / totals.gather(1, runs), num_runs)

    def loop(values: Tensor, probabilities: Tensor) -> Tensor:
        return merge(list(values.unbind(1)), list(probabilities.unbind(1)), begins, size)

    def indexing(values: Tensor, probabilities: Tensor) -> Tensor:
        T = values.shape[1]
        frames, weights = [values[:, t] for t in range(T)], [probabilities[:, t] for t in range(T)]
        return merge(frames, weights, begins, size)

    def matrix(values: Tensor, probabilities: Tensor) -> Tensor:
        runs = changes.long().cumsum(1) - 1  # (B, T)
        mine = runs[:, None] == torch.arange(int(runs.max()) + 1, device=runs.device)[None, :, None]
        weights = mine * probabilities[:, None]  # (B, N, T)
        return (weights / weights.sum(2, keepdim=True).clamp(min=1e-30)) @ values

    return {"ours": ours, "loop": loop, "matrix": matrix, "indexing": indexing}


def step(way: Way, values: Tensor, weights: Tensor, probe: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward."""
    out = way(values, weights)
    grads = torch.autograd.grad(out, (values, weights), probe)
    if out.is_cuda:
        torch.cuda.synchronize()
    return out, *grads


def measure(ways: dict[str, Way], values: Tensor, weights: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Checks that all ways agree, and times them."""
    if args.no_indexing:
        ways = {name: way for name, way in ways.items() if name != "indexing"}
    probe = torch.randn_like(ways["ours"](values, weights))
    expected = step(ways["ours"], values, weights, probe)
    differences: dict[str, float] = {}
    for name, way in ways.items():
        found = step(way, values, weights, probe)
        differences[name] = max(
            float((a.detach() - b.detach()).abs().max() / b.detach().abs().max())
            for a, b in zip(found, expected, strict=True)
        )
    check_equal(differences, args.tolerance)
    # The way that indexes takes minutes at full size: it is timed fewer times.
    fast = {name: way for name, way in ways.items() if name != "indexing"}
    seconds = compare({n: lambda w=w: step(w, values, weights, probe) for n, w in fast.items()}, args.repeats)
    if "indexing" in ways:
        slow = {"indexing": lambda: step(ways["indexing"], values, weights, probe)}
        seconds |= compare(slow, args.slow_repeats, warmup=0)
    ratios = {f"{name}/ours": seconds[name] / seconds["ours"] for name in ways if name != "ours"}
    return {"outputs": probe.shape[1], "median_s": seconds, "ratios": ratios, "differences": differences}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=1500)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--per-output", type=float, default=8.0, help="frames for each output, on average")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow-repeats", type=int, default=1)
    parser.add_argument("--no-indexing", action="store_true", help="leave out the loop that indexes frames")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative to the largest value")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    B, T, D = args.batch, args.frames, args.width
    values = torch.randn(B, T, D, device=args.device).requires_grad_()
    weights = (torch.rand(B, T, device=args.device) * 2 / args.per_output).clamp(max=1).requires_grad_()
    size = int(count(accumulate(weights.detach(), 1.0)[0], None).max())
    result: dict[str, Any] = {"batch": B, "frames": T, "width": D, "device": args.device}
    result["cif"] = measure(cif_ways(size), values, weights, args)
    labels = (torch.rand(B, T, device=args.device) < 1 / args.per_output).long().cumsum(1)
    probabilities = torch.rand(B, T, device=args.device).add(0.1).requires_grad_()
    size = int((labels[:, -1] - labels[:, 0]).max()) + 1
    result["ctc"] = measure(ctc_ways(labels, size), values, probabilities, args)
    report("compression", result)


if __name__ == "__main__":
    main()
