"""A run on a million rows against one on ten: what its start adds, and whether a micro-batch costs more.

Rows of a prepared index point into one long file; the clips are of 0.5 s, the model is tiny. Start: `speechlmm-train
run`, from its call to its first step, in a process of its own: seconds, and the resident memory that has grown by then.
Plan: examples planned a second, the epoch's table included. Micro-batch: making one in this process, reading and
collating included, and its share of the plan, of 10,000 rows against all of them, in turns.

    python benchmarks/million_rows.py [--rows 1000000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from _bench import check_equal, compare, report
from _training import quiet

RATE = 16_000
SECONDS = 0.5
BUDGET = 512
BATCHES = 40
"""Micro-batches that are made in a row."""
FEW, SMALL = 10, 10_000


def make_sound(folder: Path, rows: int) -> None:
    """The file that all rows point into."""
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, (rows // 10_000 + 2) * RATE)
    soundfile.write(folder / "sound.wav", samples.astype(np.float32), RATE, subtype="PCM_16")


def make_rows(folder: Path, rows: int) -> Path:
    """A manifest of so many rows with its prepared index; returns the specification."""
    from speechlmm_core.data.index.open import index_dir_of
    from speechlmm_train.prepare.prepare import prepare
    from speechlmm_train.prepare.settings import Settings

    name = f"rows-{rows}"
    with (folder / f"{name}.jsonl").open("w") as manifest:
        for row in range(rows):
            start = row / 10_000
            audio = {"path": "sound.wav", "start": start, "end": start + SECONDS + row % 8 / 100}
            one = {"audio": audio, "text": f"{row:x}", "id": f"utt-{row}", "language": "en"}
            manifest.write(json.dumps(one) + "\n")
    entry = {"type": "jsonl", "path": f"{name}.jsonl", "name": "m", "task": "asr", "languages": ["en"]}
    spec = folder / f"{name}.yaml"
    spec.write_text(json.dumps({"datasets": [entry]}))
    found = prepare(spec, index_dir=index_dir_of(spec), settings=Settings(), jobs=0, progress=False)
    check_equal({"rows in quarantine": float(rows - found.parts[0].kept)}, 0)
    return spec


def config(spec: Path, out: Path) -> dict[str, Any]:
    """A run of one step."""
    encoder = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 1, "encoder_ffn_dim": 16}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    decoder = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, **heads}
    return {
        "model": {
            "audio_encoder": {"type": "whisper_unrestricted", "model": {**encoder, "num_mel_bins": 16}},
            "audio_adapter": {"type": "mlp", "stack": 2, "num_layers": 1},
            "text_decoder": {"type": "causal_lm", "tokenizer": "bytes", "model": decoder},
        },
        "data": {"data_config_path": str(spec)},
        "training": {
            "output_dir": str(out),
            "max_steps": 1,
            "token_budget": BUDGET,
            "use_cpu": True,
            "save_steps": None,
            "report_to": [],
        },
    }


def resident() -> float:
    """Resident memory of this process in megabytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class StartedError(Exception):
    """The first step begins."""


def start(spec: Path, folder: Path, queue: Any) -> None:
    """Starts a run, and tells what that cost."""
    os.environ["SPEECHLMM_CACHE"] = str(folder / "cache")
    from speechlmm_train.compose import validate
    from speechlmm_train.run import run
    from speechlmm_train.trainer.trainer import SpeechLMMTrainer

    quiet()

    def first_step(*args: Any, **kwargs: Any) -> Any:
        raise StartedError

    SpeechLMMTrainer.training_step = first_step
    checked = validate(config(spec, folder / f"out-{os.getpid()}"))
    before, began = resident(), time.perf_counter()
    try:
        run(checked, progress=False)
    except StartedError:
        queue.put((time.perf_counter() - began, resident() - before))
    else:
        queue.put((float("nan"), float("nan")))


def starts(specs: dict[int, Path], folder: Path, repeats: int) -> dict[int, tuple[float, float]]:
    """Median seconds and megabytes of a start by number of rows."""
    context = multiprocessing.get_context("spawn")
    found: dict[int, list[tuple[float, float]]] = {rows: [] for rows in specs}
    for repeat in range(repeats + 1):
        for rows, spec in specs.items():
            queue = context.Queue()
            process = context.Process(target=start, args=(spec, folder, queue))
            process.start()
            process.join()
            check_equal({f"exit code of the start on {rows} rows": float(process.exitcode or 0)}, 0)
            figures = queue.get(timeout=60)
            if repeat:  # the first one fills the caches of the system, and measures nothing
                found[rows].append(figures)
    return {rows: tuple(map(statistics.median, zip(*figures, strict=True))) for rows, figures in found.items()}


def per_batch(specs: dict[int, Path], folder: Path, repeats: int) -> dict[str, Any]:
    """What a micro-batch costs by number of rows, and how fast the plan is."""
    from speechlmm_core.processor.processor import SpeechLMMProcessor
    from speechlmm_train.compose import validate
    from speechlmm_train.trainer.stage_data import open_stages

    stages, plans = {}, {}
    for rows, spec in specs.items():
        checked = validate(config(spec, folder / f"plan-{rows}"))
        processor = SpeechLMMProcessor.from_config(checked.model)
        (stages[rows],) = open_stages(checked, processor, base=folder, world_size=1)
        seconds: list[float] = []
        for epoch in range(repeats):
            began = time.perf_counter()
            table = stages[rows].plan.epoch(epoch)
            seconds.append(time.perf_counter() - began)
            check_equal({"examples left out": float(rows - len(set(table.order.tolist())))}, 0)
        table = stages[rows].plan.epoch(0)
        median = statistics.median(seconds)
        plans[rows] = {"seconds": median, "examples": len(table.order), "batches": len(table)}

    def make(rows: int) -> None:
        # From the middle of the epoch: nothing may be replayed to get there.
        first = plans[rows]["batches"] // 2
        for _ in itertools.islice(stages[rows].batches(first, rank=0), BATCHES):
            pass

    cases = {str(rows): (lambda rows=rows: make(rows)) for rows in specs}
    medians = compare(cases, repeats)
    cost = {rows: medians[str(rows)] / BATCHES + plans[rows]["seconds"] / plans[rows]["batches"] for rows in specs}
    most, least = max(specs), min(specs)
    return {
        "planned_per_second": {rows: round(one["examples"] / one["seconds"]) for rows, one in plans.items()},
        "milliseconds_per_batch": {rows: round(1e3 * value, 3) for rows, value in cost.items()},
        "batch_cost_ratio": round(cost[most] / cost[least], 3),
    }


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SPEECHLMM_CACHE"] = str(folder / "cache")
        make_sound(folder, options.rows)
        specs = {rows: make_rows(folder, rows) for rows in (FEW, SMALL, options.rows)}
        begun = starts({FEW: specs[FEW], options.rows: specs[options.rows]}, folder, options.repeats)
        batches = per_batch({SMALL: specs[SMALL], options.rows: specs[options.rows]}, folder, options.repeats + 2)
    few, many = begun[FEW], begun[options.rows]
    report(
        "million_rows",
        {
            "rows": options.rows,
            "start_seconds": {rows: round(values[0], 2) for rows, values in begun.items()},
            "start_megabytes": {rows: round(values[1], 1) for rows, values in begun.items()},
            "start_adds_seconds": round(many[0] - few[0], 2),
            "start_adds_megabytes": round(many[1] - few[1], 1),
            **batches,
        },
    )


if __name__ == "__main__":
    main()
