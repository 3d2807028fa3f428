"""Opening a prepared index of a million rows, against reading a JSONL manifest of the same.

Each is opened in a process of its own: seconds from the call to a random access, and what the resident memory grows by.
The manifest is read as training reads it (each line checked, files looked for) and, as a lower bound, by `json.loads`
alone into a list.

Run: python benchmarks/prepared_index.py [--rows 1000000]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _bench import check_equal, report

from speechlmm_core.data.example import Example
from speechlmm_core.data.index.header import IndexHeader
from speechlmm_core.data.index.layout import part_digest, part_folder
from speechlmm_core.data.index.open import made_by, open_prepared
from speechlmm_core.data.index.rows import encode_example
from speechlmm_core.data.index.state import FileState
from speechlmm_core.data.index.write import write_part
from speechlmm_core.data.jsonl.config import JsonlDatasetConfig
from speechlmm_core.data.jsonl.reader import JsonlExamples
from speechlmm_core.interfaces.dataset import EVERYTHING

READER = JsonlDatasetConfig(path="m.jsonl")
TEXT = "a sentence of about ten words as corpora of speech have it"


def make(folder: Path, rows: int) -> float:
    """A manifest and its index; returns the index' bytes a row besides their text."""
    sound = folder / "sound.wav"
    sound.write_bytes(b"RIFF")
    status = sound.stat()
    starts = np.zeros(rows + 1, np.int64)
    text = 0
    with (folder / "m.jsonl").open("w") as manifest, (folder / "staged").open("wb") as lines:
        for row in range(rows):
            one = {"audio": "sound.wav", "text": f"{TEXT} {row}", "id": f"utt-{row}", "language": "en"}
            manifest.write(json.dumps(one) + "\n")
            media = {"audio": {"type": "audio", "path": str(sound)}}
            example = Example.model_construct(
                id=one["id"], task="asr", media=media, text=one["text"], source_language="en"
            )
            line = encode_example(example, f"{folder}/")
            lines.write(line)
            starts[row + 1] = starts[row] + len(line)
            text += len(one["text"])
    zeros = np.zeros(rows)
    columns: dict[str, Any] = {
        **dict.fromkeys(("words", "characters", "quality", "status", "place_files", "clipped", "peaks"), zeros),
        "seconds": np.arange(rows) % 30 + 1.0,
        "place_numbers": np.arange(rows) + 1,
        "lines": starts,
        "media_starts": np.arange(rows + 1),
        "num_samples": np.full(rows, 16_000),
        "sampling_rates": np.full(rows, 16_000),
        "sizes": np.full(rows, status.st_size),
        "times": np.full(rows, status.st_mtime_ns),
        "keys": np.arange(rows),
        "measured": zeros,
        "hashes": np.zeros(16 * rows, np.uint8),
    }
    digest = part_digest("m", READER, folder, EVERYTHING)
    sources = (FileState.of(folder / "m.jsonl"),)
    header = IndexHeader(
        *("m", digest, 0, 0, 0, "fast", ""),
        root=f"{folder}/",
        made_by=made_by(READER),
        sources=sources,
        places=("m.jsonl",),
    )
    part = part_folder(folder / "m.index", "m", digest)
    write_part(part, header, columns, folder / "staged", kept=np.arange(rows) % 100 != 99)
    return (sum(file.stat().st_size for file in part.iterdir()) - text) / rows


def resident() -> float:
    """Resident memory of this process in megabytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def open_index(folder: Path) -> tuple[str, Any]:
    """Opens the index, filters by duration and takes an example."""
    found = open_prepared(folder / "m.index", "m", READER, folder, EVERYTHING)
    assert found is not None
    return found[len(found) // 2].text or "", (found, found.seconds <= 20)


def open_manifest(folder: Path) -> tuple[str, Any]:
    """Opens the manifest as training does without an index."""
    found = JsonlExamples(folder / "m.jsonl")
    return found[len(found) // 2].text or "", found


def parse_manifest(folder: Path) -> tuple[str, Any]:
    """Parses the manifest into a list."""
    with (folder / "m.jsonl").open("rb") as file:
        found = [json.loads(line) for line in file]
    return found[len(found) // 2]["text"], found


CASES = {"index": open_index, "manifest": open_manifest, "json_list": parse_manifest}


def child(case: str, folder: Path, queue: Any) -> None:
    """Opens one, and tells what it cost."""
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
        per_row = make(folder, options.rows)
        for _ in range(options.repeats):
            for case in CASES:
                queue = context.Queue()
                process = context.Process(target=child, args=(case, folder, queue))
                process.start()
                taken, grown, text = queue.get(timeout=120)
                process.join()
                seconds[case].append(taken)
                megabytes[case].append(grown)
                check_equal({case: float(not text.startswith(TEXT))}, 0)
    medians = {case: statistics.median(values) for case, values in seconds.items()}
    report(
        "prepared_index",
        {
            "rows": options.rows,
            "bytes_a_row_besides_text": round(per_row, 1),
            "seconds": {case: round(value, 4) for case, value in medians.items()},
            "megabytes": {case: round(statistics.median(values), 1) for case, values in megabytes.items()},
            "faster_than_manifest": round(medians["manifest"] / medians["index"], 1),
            "faster_than_json_list": round(medians["json_list"] / medians["index"], 1),
        },
    )


if __name__ == "__main__":
    main()
