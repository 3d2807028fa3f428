"""Opening an entry of a specification with a million rows from its prepared index, against its JSONL manifest.

The entry names a task and a language; the index is what `speechlmm-train prepare` writes. Each is opened by `open_spec`
in a process of its own, with an empty cache: seconds from the call to a random access, and what the resident memory
grows by, measured while what was opened is held. The manifest is read as training reads it without an index (each line
checked, files looked for) and, as a lower bound, by `json.loads` alone into a list.

Run: python benchmarks/prepared_index.py [--rows 1000000]
"""

from __future__ import annotations

import argparse
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
from _bench import check_equal, report

from speechlmm_core.data.index.open import index_dir_of
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.open import open_spec

RATE = 8_000
TEXT = "a sentence of about ten words as corpora of speech have it"


def make(folder: Path, rows: int) -> tuple[float, float]:
    """A manifest and its index; returns the seconds that it took to prepare, and its bytes a row besides the text."""
    from speechlmm_train.prepare.prepare import prepare
    from speechlmm_train.prepare.settings import Settings

    samples = np.random.default_rng(0).uniform(-0.1, 0.1, round((rows / 1000 + 20) * RATE))
    soundfile.write(folder / "sound.wav", samples.astype(np.float32), RATE, subtype="PCM_16")
    text = 0
    with (folder / "m.jsonl").open("w") as manifest:
        for row in range(rows):
            audio = {"path": "sound.wav", "start": row / 1000, "end": row / 1000 + 4 + row % 16}
            one = {"audio": audio, "text": f"{TEXT} {row}", "id": f"utt-{row}", "language": "en"}
            manifest.write(json.dumps(one) + "\n")
            text += len(one["text"])
    entry = {"type": "jsonl", "path": "m.jsonl", "name": "m", "task": "asr", "languages": ["en"]}
    (folder / "s.yaml").write_text(json.dumps({"datasets": [entry]}))
    start = time.perf_counter()
    found = prepare(
        folder / "s.yaml", index_dir=index_dir_of(folder / "s.yaml"), settings=Settings(), jobs=0, progress=False
    )
    seconds = time.perf_counter() - start
    check_equal({"rows in quarantine": float(rows - found.parts[0].kept)}, 0)
    size = sum(file.stat().st_size for file in index_dir_of(folder / "s.yaml").glob("*/*"))
    return seconds, (size - text) / rows


def resident() -> float:
    """Resident memory of this process in megabytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def open_index(folder: Path) -> tuple[str, Any]:
    """Opens the entry from its index, and takes an example."""
    path = folder / "s.yaml"
    (found,) = open_spec(read_spec(path), base=folder, index_dir=index_dir_of(path))
    return found.examples[len(found.examples) // 2].text or "", found


def open_manifest(folder: Path) -> tuple[str, Any]:
    """Opens the entry as training does without an index."""
    (found,) = open_spec(read_spec(folder / "s.yaml"), base=folder)
    return found.examples[len(found.examples) // 2].text or "", found


def parse_manifest(folder: Path) -> tuple[str, Any]:
    """Parses the manifest into a list."""
    with (folder / "m.jsonl").open("rb") as file:
        found = [json.loads(line) for line in file]
    return found[len(found) // 2]["text"], found


CASES = {"index": open_index, "manifest": open_manifest, "json_list": parse_manifest}


def child(case: str, folder: Path, queue: Any) -> None:
    """Opens one, and tells what it cost."""
    os.environ["SPEECHLMM_CACHE"] = str(folder / f"cache-{os.getpid()}")
    before = resident()
    start = time.perf_counter()
    text, kept = CASES[case](folder)
    seconds = time.perf_counter() - start
    grown = resident() - before
    del kept  # what was opened counts as long as it is used
    queue.put((seconds, grown, text))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    megabytes: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        preparing, per_row = make(folder, options.rows)
        for _ in range(options.repeats):
            for case in CASES:
                queue = context.Queue()
                process = context.Process(target=child, args=(case, folder, queue))
                process.start()
                taken, grown, text = queue.get(timeout=600)
                process.join()
                seconds[case].append(taken)
                megabytes[case].append(grown)
                check_equal({case: float(not text.startswith(TEXT))}, 0)
    medians = {case: statistics.median(values) for case, values in seconds.items()}
    report(
        "prepared_index",
        {
            "rows": options.rows,
            "seconds_to_prepare": round(preparing, 1),
            "bytes_a_row_besides_text": round(per_row, 1),
            "seconds": {case: round(value, 4) for case, value in medians.items()},
            "megabytes": {case: round(statistics.median(values), 1) for case, values in megabytes.items()},
            "faster_than_manifest": round(medians["manifest"] / medians["index"], 1),
            "faster_than_json_list": round(medians["json_list"] / medians["index"], 1),
        },
    )


if __name__ == "__main__":
    main()
