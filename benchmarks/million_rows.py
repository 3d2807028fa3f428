"""A run on a million rows against one on ten: what its start adds, and whether a micro-batch costs more.

Rows of an index point into one long file; the clips are of 0.5 s, the model is tiny. The index is prepared with the
model, as `speechlmm-train prepare SPEC --config-name …` does, so that not even the first start counts what rows take
(each start is checked to count nothing); what preparing takes is told, rows and sizes apart, and what a first start
takes on an index that was prepared without the model. Start: `speechlmm-train run`, from its call to its first step, in
a process of its own with an empty cache: seconds, and the resident memory that has grown by then.
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


def make_rows(folder: Path, rows: int, *, sized: bool = True) -> tuple[Path, dict[str, float]]:
    """A manifest of so many rows with its prepared index; returns the specification, and how long that took."""
    from speechlmm_core.data.index.open import index_dir_of
    from speechlmm_core.processor.processor import SpeechLMMProcessor
    from speechlmm_train.compose import validate
    from speechlmm_train.prepare.prepare import prepare
    from speechlmm_train.prepare.settings import Settings
    from speechlmm_train.prepare.sizes import ModelTarget, count_sizes

    name = f"rows-{rows}" if sized else f"unsized-{rows}"
    with (folder / f"{name}.jsonl").open("w") as manifest:
        for row in range(rows):
            start = row / 10_000
            audio = {"path": "sound.wav", "start": start, "end": start + SECONDS + row % 8 / 100}
            one = {"audio": audio, "text": f"{row:x}", "id": f"utt-{row}", "language": "en"}
            manifest.write(json.dumps(one) + "\n")
    entry = {"type": "jsonl", "path": f"{name}.jsonl", "name": "m", "task": "asr", "languages": ["en"]}
    spec = folder / f"{name}.yaml"
    spec.write_text(json.dumps({"datasets": [entry]}))
    began = time.perf_counter()
    found = prepare(spec, index_dir=index_dir_of(spec), settings=Settings(), jobs=0, progress=False)
    check_equal({"rows in quarantine": float(rows - found.parts[0].kept)}, 0)
    seconds = {"rows": time.perf_counter() - began}
    if sized:
        target = ModelTarget(SpeechLMMProcessor.from_config(validate(config(spec, folder / "none")).model))
        began, jobs = time.perf_counter(), os.cpu_count() or 1
        counted = count_sizes(
            spec, [target], index_dir=index_dir_of(spec), jobs=jobs, progress=lambda name, count: lambda done: None
        )
        seconds["sizes"] = time.perf_counter() - began
        check_equal({"rows without sizes": float(rows - counted)}, 0)
    return spec, seconds


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


def start(spec: Path, folder: Path, cache: Path, queue: Any) -> None:
    """Starts a run, and tells what that cost, and of how many datasets the sizes were counted."""
    os.environ["SPEECHLMM_CACHE"] = str(cache)
    from speechlmm_core.data import lengths
    from speechlmm_train.compose import validate
    from speechlmm_train.run import run
    from speechlmm_train.trainer.trainer import SpeechLMMTrainer

    quiet()

    def first_step(*args: Any, **kwargs: Any) -> Any:
        raise StartedError

    counted: list[int] = []
    measure = lengths.measure_anew

    def noted(examples: Any, *args: Any, **kwargs: Any) -> Any:
        counted.append(len(examples))
        return measure(examples, *args, **kwargs)

    SpeechLMMTrainer.training_step = first_step
    lengths.measure_anew = noted
    checked = validate(config(spec, folder / f"out-{os.getpid()}"))
    before, began = resident(), time.perf_counter()
    try:
        run(checked, progress=False)
    except StartedError:
        queue.put((time.perf_counter() - began, resident() - before, sum(counted)))
    else:
        queue.put((float("nan"), float("nan"), 0))


def started(spec: Path, folder: Path, cache: Path) -> tuple[float, float, int]:
    """Seconds, megabytes and counted examples of one start."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=start, args=(spec, folder, cache, queue))
    process.start()
    process.join()
    check_equal({f"exit code of the start on {spec.stem}": float(process.exitcode or 0)}, 0)
    return queue.get(timeout=60)


def starts(specs: dict[int, Path], folder: Path, repeats: int) -> dict[int, tuple[float, float]]:
    """Median seconds and megabytes of a start by number of rows."""
    found: dict[int, list[tuple[float, float]]] = {rows: [] for rows in specs}
    for repeat in range(repeats + 1):
        for rows, spec in specs.items():
            seconds, megabytes, counted = started(spec, folder, folder / f"cache-{repeat}-{rows}")
            check_equal({f"examples counted at the start on {rows} rows": float(counted)}, 0)
            if repeat:  # the first one fills the system's cache of files; it counts nothing either, but is not timed
                found[rows].append((seconds, megabytes))
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
        made = {rows: make_rows(folder, rows) for rows in (FEW, SMALL, options.rows)}
        specs = {rows: spec for rows, (spec, _) in made.items()}
        unsized, _ = make_rows(folder, SMALL, sized=False)
        without, _, counted = started(unsized, folder, folder / "cache-unsized")
        check_equal({"examples not counted at a start without sizes": float(SMALL - counted)}, 0)
        begun = starts({FEW: specs[FEW], options.rows: specs[options.rows]}, folder, options.repeats)
        batches = per_batch({SMALL: specs[SMALL], options.rows: specs[options.rows]}, folder, options.repeats + 2)
    few, many = begun[FEW], begun[options.rows]
    report(
        "million_rows",
        {
            "rows": options.rows,
            "prepare_seconds": {what: round(value, 2) for what, value in made[options.rows][1].items()},
            "prepare_seconds_per_10000": {
                what: round(1e4 * value / options.rows, 3) for what, value in made[options.rows][1].items()
            },
            "first_start_without_sizes_adds_seconds_per_10000": round(1e4 * (without - few[0]) / SMALL, 2),
            "start_seconds": {rows: round(values[0], 2) for rows, values in begun.items()},
            "start_megabytes": {rows: round(values[1], 1) for rows, values in begun.items()},
            "start_adds_seconds": round(many[0] - few[0], 2),
            "start_adds_megabytes": round(many[1] - few[1], 1),
            **batches,
        },
    )


if __name__ == "__main__":
    main()
