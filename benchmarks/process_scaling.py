"""Two processes against one, one thread each: `speechlmm-train run` on the CPU with DDP (gloo).

A step is four micro-batches: one process computes them in turn, two compute two each and exchange gradients once, at
the end of the step. What is exchanged does not depend on how much a step holds, so the figure does: by default a step
has 8,192 positions, which with the 30 million parameters of `medium` are some 1.5 TFLOP to compute and 0.12 GB to
exchange, so that computing dominates. With steps a tenth as large, the exchange takes a good part of them.
What a step takes is measured by the runs' own figures, the first line left out. Both have to end on the same loss.

    python benchmarks/process_scaling.py [--steps 6] [--budget 2048] [--micro-batches 4] [--repeats 2]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _bench import check_equal, report
from _training import MODELS, cpu_run, make_corpus
from batch_plan import LAWS

CLIPS = 64


def config(manifest: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The run."""
    steps = {"max_steps": options.steps, "micro_batches_per_step": options.micro_batches}
    steps["logging_steps"] = max(options.steps // 3, 1)
    return cpu_run(manifest, out, options, token_budget=options.budget, **steps)


def train(manifest: Path, out: Path, options: argparse.Namespace, processes: int) -> tuple[float, float]:
    """Seconds of a step, and the last loss."""
    from speechlmm_train.launch.job import Job
    from speechlmm_train.launch.local import run_job

    plain = config(manifest, out, options)
    code = run_job(Job(plain, base=str(manifest.parent), progress=False), processes=processes, timeout=900)
    check_equal({f"exit code of {processes} processes": float(code)}, 0)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "train/step_seconds" in row]
    return statistics.mean(row["train/step_seconds"] for row in rows[1:]), rows[-1]["train/loss"]


def main() -> None:
    """Prints seconds a step and their ratio as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--budget", type=int, default=2048, help="positions in a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=4, help="micro-batches in a step")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", choices=tuple(MODELS), default="medium")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    options = parser.parse_args()
    # Two processes of two threads on two cores would wait for each other.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.setdefault("SPEECHLMM_CACHE", str(folder / "cache"))
        manifest = make_corpus(folder, LAWS["librispeech_like"](CLIPS, np.random.default_rng(0)))
        for repeat in range(options.repeats):
            for processes, rows in found.items():
                rows.append(train(manifest, folder / f"{repeat}-{processes}", options, processes))
    losses = [loss for rows in found.values() for _, loss in rows]
    tolerance = 1e-4 if options.dtype == "float32" else 1e-2
    check_equal({"loss": max(losses) / min(losses) - 1}, tolerance)
    seconds = {processes: statistics.median(step for step, _ in rows) for processes, rows in found.items()}
    settings = {name: getattr(options, name) for name in ("steps", "budget", "micro_batches", "model", "dtype")}
    report(
        "process_scaling",
        {
            **settings,
            "step_seconds": {str(processes): round(value, 3) for processes, value in seconds.items()},
            "two_against_one": round(seconds[1] / seconds[2], 3),
        },
    )


if __name__ == "__main__":
    main()
