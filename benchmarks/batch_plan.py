"""The batch plan against random batches and length-grouped ones, on a million lengths of two laws.

Fill: mean of the larger share of the two budgets. Padding: real encoder frames by padded ones. Balance: mean by maximum
over the eight micro-batches of a step, one a rank, in padded frames. Correlation: of consecutive steps' mean durations
(and of consecutive micro-batches' with one micro-batch a step). Sampling speed: examples planned a second, of one data
set and of a hundred groups in five tasks mixed by weight in each of the ways.

    python benchmarks/batch_plan.py [--examples 1000000]
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import numpy as np
from _bench import report
from numpy.typing import NDArray
from transformers.trainer_pt_utils import LengthGroupedSampler

from speechlmm_train.batching.epoch import Epoch
from speechlmm_train.batching.mix import Group, Mix
from speechlmm_train.batching.plan import BatchPlan

RANKS = 8
BATCH = 16


def librispeech_like(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Seconds: most clips end at the 12 to 16 s at which LibriSpeech was cut, the others are spread below."""
    long, short = rng.normal(14.4, 1.3, count), rng.uniform(1.5, 14, count)
    return np.clip(np.where(rng.random(count) < 0.72, long, short), 1.3, 24.5)


def log_normal(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Seconds: median 6.5 s, at most 30 s."""
    return np.clip(6.5 * np.exp(0.72 * rng.standard_normal(count)), 0.5, 30)


LAWS = {"librispeech_like": librispeech_like, "log_normal": log_normal}


def sizes(seconds: NDArray[np.float64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions and frames: 50 frames a second, stacked by four; words at a rate that varies by speaker; a prompt."""
    frames = np.ceil(seconds * 50).astype(np.int64)
    words = rng.poisson(seconds * 3.5 * np.exp(0.15 * rng.standard_normal(len(seconds))))
    return -(-frames // 4) + 30 + words, frames


def figures(table: Epoch, frames: NDArray[np.int64], ranks: int = RANKS) -> dict[str, float]:
    """Padding, balance and correlation of an epoch's micro-batches."""
    starts = np.concatenate([[0], table.ends[:-1]])
    counts = table.ends - starts
    real = np.add.reduceat(frames[table.order], starts)
    padded = np.maximum.reduceat(frames[table.order], starts) * counts
    steps = len(counts) // ranks
    padded, real, counts = (values[: steps * ranks].reshape(steps, ranks) for values in (padded, real, counts))
    padding, balance = real.sum() / padded.sum(), padded.mean() / padded.max(axis=1).mean()
    means = real.sum(axis=1) / counts.sum(axis=1)
    return {
        "padding": float(padding),
        "balance": float(balance),
        "padding_x_balance": float(padding * balance),
        "correlation_of_steps": float(np.corrcoef(means[1:], means[:-1])[0, 1]),
    }


def fixed(order: NDArray[np.int64]) -> Epoch:
    """Batches of a fixed size from an order of the examples."""
    ends = np.append(np.arange(BATCH, len(order), BATCH), len(order))
    return Epoch(order, ends, np.zeros_like(order))


def mixed(positions: NDArray[np.int64], frames: NDArray[np.int64], budget: int) -> dict[str, float]:
    """Examples planned a second with groups of very different sizes, weighted so that small ones repeat."""
    rng = np.random.default_rng(1)
    groups = [Group(f"dataset-{i // 5}", f"task-{i % 5}") for i in range(100)]
    members = rng.choice(100, len(positions), p=(law := 1 / np.arange(1, 101)) / law.sum())
    weights = {f"task-{i}": float(i + 1) for i in range(5)}
    speeds: dict[str, float] = {}
    for mixing in ("random", "length", "alternating", "sequential"):
        start = time.perf_counter()
        mix = Mix.of(groups, members, positions, mixing=mixing, task_weights=weights)
        plan = BatchPlan(positions, frames, token_budget=budget, micro_batches_per_step=RANKS, mix=mix)
        planned = len(plan.epoch(0).order)
        speeds[mixing] = planned / (time.perf_counter() - start)
    return speeds


def measure(count: int, law: str) -> dict[str, Any]:
    """Figures of one law."""
    rng = np.random.default_rng(0)
    seconds = LAWS[law](count, rng)
    positions, frames = sizes(seconds, rng)
    budget = int(BATCH * positions.mean())
    start = time.perf_counter()
    plan = BatchPlan(positions, frames, token_budget=budget, micro_batches_per_step=RANKS)
    table = plan.epoch(0)
    elapsed = time.perf_counter() - start
    assert np.array_equal(np.sort(table.order), np.arange(count))
    ours = figures(table, frames) | {"fill": plan.fill(), "examples_per_second": count / elapsed}
    single = BatchPlan(positions, frames, token_budget=budget).epoch(0)
    ours["correlation_of_micro_batches"] = figures(single, frames, ranks=1)["correlation_of_steps"]
    start = time.perf_counter()
    plan.epoch(2)
    plan.step(int(plan.epoch_steps() * 2.5))
    ours["seconds_per_epoch_to_resume_in_the_third"] = (time.perf_counter() - start) / 2
    grouped = LengthGroupedSampler(BATCH, lengths=frames.tolist())
    return {
        "plan": ours,
        "examples_per_second_mixed": mixed(positions, frames, budget),
        "random_16": figures(fixed(rng.permutation(count)), frames),
        "length_grouped_16": figures(fixed(np.fromiter(itertools.islice(grouped, count), np.int64, count)), frames),
        "pad_to_30_s": {"padding": float(frames.mean() / 1500)},
    }


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1_000_000)
    count = parser.parse_args().examples
    report("batch_plan", {"examples": count, **{law: measure(count, law) for law in LAWS}})


if __name__ == "__main__":
    main()
