"""Finding the place of a resumed run: with the checkpoint's note of where its epoch begins, against making all epochs.

python benchmarks/resume_position.py [--examples 100000] [--epochs 1 10 50]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np
from _bench import check_equal, compare, report

from speechlmm_train.batching.mix import Group, Mix
from speechlmm_train.batching.plan import BatchPlan


def plan_of(count: int, mixing: str) -> BatchPlan:
    """Log-normal lengths, two tasks, eight micro-batches a step."""
    rng = np.random.default_rng(0)
    seconds = np.clip(6.5 * np.exp(0.72 * rng.standard_normal(count)), 0.5, 30)
    frames = np.ceil(seconds * 50).astype(np.int64)
    positions = frames // 4 + 50
    weights = {"asr": 0.7, "st": 0.3}
    groups = [Group("a", "asr"), Group("a", "st")]
    mix = Mix.of(groups, np.arange(count) % 2, positions, mixing=mixing, task_weights=weights)  # pyright: ignore[reportArgumentType]
    return BatchPlan(positions, frames, token_budget=int(16 * positions.mean()), micro_batches_per_step=8, mix=mix)


def main() -> None:
    """Prints the seconds until the first step of a resumed run is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--epochs", type=float, nargs="+", default=[1.0, 10.0, 50.0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    result: dict[str, object] = {}
    for mixing in ("random", "alternating"):
        whole = plan_of(options.examples, mixing)
        for epochs in options.epochs:
            step = int(epochs * whole.epoch_steps()) + 1
            note = json.dumps(whole.position(step))

            def noted(step: int = step, note: str = note, mixing: str = mixing) -> list[list[int]]:
                plan = plan_of(options.examples, mixing)
                plan.go_to(json.loads(note))
                return plan.step(step)

            def walked(step: int = step, mixing: str = mixing) -> list[list[int]]:
                return plan_of(options.examples, mixing).step(step)

            check_equal({mixing: float(noted() != walked())}, 0)
            cases: dict[str, Callable[[], object]] = {"noted": noted, "all_epochs": walked}
            seconds = compare(cases, options.repeats)
            result[f"{mixing}, epoch {epochs:g}"] = {**seconds, "ratio": seconds["all_epochs"] / seconds["noted"]}
    report("resume_position", {"examples": options.examples, "seconds": result})


if __name__ == "__main__":
    main()
