"""How long training steps wait for data: a model of the demo's size, real runs with a data worker and without.

Clips of noise of the demo's lengths (2 to 5 s at 16 kHz, FLAC) with text at the rate of speech; the share is what
`train/data_wait` says after the first steps, in which the worker and the caches start. Both ways have to end on the
same loss.

    python benchmarks/loader_wait.py [--clips 256] [--steps 60] [--batch 16] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from _bench import check_equal, report
from _demo_model import demo_model

from speechlmm_train.compose import validate
from speechlmm_train.process import prepare_process
from speechlmm_train.run import run

RATE = 16_000
WARMUP = 10
"""Steps that are left out, which is also how often figures are written."""


def make_corpus(folder: Path, clips: int) -> Path:
    """Clips with a manifest."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz     "))
    lines: list[str] = []
    for i in range(clips):
        seconds = rng.uniform(2, 5)
        soundfile.write(folder / f"{i}.flac", rng.uniform(-0.1, 0.1, int(seconds * RATE)), RATE)
        text = "".join(rng.choice(letters, int(12 * seconds)))
        lines.append(json.dumps({"audio": f"{i}.flac", "text": text, "task": "asr", "language": "en"}))
    manifest = folder / "train.jsonl"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def config(manifest: Path, out: Path, options: argparse.Namespace, workers: int) -> dict[str, Any]:
    """A run of the demo's model, with bytes in the place of the tokenizer that the demo trains."""
    objectives = {"lm": {"type": "next_token"}, "ctc": {"type": "ctc", "stage": "audio_encoder"}}
    return {
        "model": {**demo_model(), "objectives": objectives},
        "data": {"train": [str(manifest)]},
        "training": {
            "output_dir": str(out),
            "max_steps": options.steps,
            "per_device_train_batch_size": options.batch,
            "num_workers": workers,
            "logging_steps": WARMUP,
            "save_steps": None,
            "report_to": [],
        },
    }


def train(manifest: Path, folder: Path, options: argparse.Namespace, workers: int) -> dict[str, float]:
    """Figures of one run."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "out"
    run(validate(config(manifest, out, options, workers)), progress=False)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    later = [row for row in rows if row["step"] > WARMUP]
    return {
        "waiting": statistics.mean(row["train/data_wait"] for row in later),
        "audio_seconds_per_second": statistics.mean(row["train/audio_seconds_per_second"] for row in later),
        "loss": rows[-1]["train/loss"],
    }


def main() -> None:
    """Prints the shares as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    prepare_process()
    torch.set_num_threads(1)
    logging.getLogger("speechlmm_train").setLevel(logging.ERROR)
    found: dict[str, list[dict[str, float]]] = {"one_worker": [], "no_worker": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_corpus(folder, options.clips)
        for _ in range(options.repeats):
            for way, workers in (("one_worker", 1), ("no_worker", 0)):
                found[way].append(train(manifest, folder, options, workers))
    losses = [row.pop("loss") for rows in found.values() for row in rows]
    check_equal({"loss": max(losses) - min(losses)}, 1e-6)
    medians = {
        way: {name: statistics.median(row[name] for row in rows) for name in rows[0]} for way, rows in found.items()
    }
    speed = "audio_seconds_per_second"
    medians["ratio_of_speeds"] = {speed: medians["one_worker"][speed] / medians["no_worker"][speed]}
    report("loader_wait", {"steps": options.steps, "batch": options.batch, **medians})


if __name__ == "__main__":
    main()
