"""`prepare --check fast` on a made corpus of short FLAC files, against reading headers and hashes in a loop.

The loop is what one writes first: `soundfile.info` and `hashlib` for each file, in one process. Decoding every file is
what a check without an index costs. The hours are those of the files that are read; the time is that of the whole
command, listing, writing and drawing included, and `reading` that of its pass over the files. The corpus is read once
before, so that the disk does not count.

Run: python benchmarks/prepare.py [--files 20000] [--seconds 10] [--jobs 2]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from _bench import check_equal, report

from speechlmm_core.data.index.layout import HEADER
from speechlmm_train.prepare.prepare import prepare
from speechlmm_train.prepare.settings import Settings

RATE = 16_000
ORIGINALS = 32


def make(folder: Path, files: int, seconds: float) -> list[Path]:
    """Files of noise with a speech-like envelope; later ones are copies with another first sample."""
    rng = np.random.default_rng(0)
    count = round(seconds * RATE)
    paths: list[Path] = []
    originals: list[bytes] = []
    for number in range(files):
        path = folder / f"{number}.flac"
        if number < ORIGINALS:
            envelope = np.repeat(rng.uniform(0, 0.2, -(-count // 1600)), 1600)[:count]
            soundfile.write(path, (rng.standard_normal(count) * envelope).clip(-1, 1).astype(np.float32), RATE)
            originals.append(path.read_bytes())
        else:  # an unused byte of the seek table's or padding's block would do; the end is what decoders pass over
            path.write_bytes(originals[number % ORIGINALS] + number.to_bytes(4, "big"))
        paths.append(path)
    lines = [{"audio": path.name, "text": f"file {number}"} for number, path in enumerate(paths)]
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "s.yaml").write_text("datasets:\n- {type: jsonl, path: m.jsonl, name: m}\n")
    return paths


def loop(paths: list[Path]) -> list[tuple[int, bytes]]:
    """Headers and hashes, one file after the other."""
    found = []
    for path in paths:
        info = soundfile.info(path)
        found.append((info.frames, hashlib.blake2b(path.read_bytes(), digest_size=16).digest()))
    return found


def decode(paths: list[Path]) -> int:
    """Decodes everything."""
    return sum(len(soundfile.read(path, dtype="float32")[0]) for path in paths)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make(folder, options.files, options.seconds)
        few = paths[: max(1, options.files // 20)]
        hours = options.files * options.seconds / 3600
        times: dict[str, list[float]] = {"prepare": [], "reading": [], "loop": [], "decode": []}
        expected = loop(paths)
        for _ in range(options.repeats):
            shutil.rmtree(folder / "s.index", ignore_errors=True)
            start = time.perf_counter()
            found = prepare(
                folder / "s.yaml",
                index_dir=folder / "s.index",
                settings=Settings(),
                jobs=options.jobs,
                progress=False,
            )
            times["prepare"].append(time.perf_counter() - start)
            times["reading"].append(found.seconds)
            start = time.perf_counter()
            loop(paths)
            times["loop"].append(time.perf_counter() - start)
            start = time.perf_counter()
            decode(few)
            times["decode"].append((time.perf_counter() - start) * len(paths) / len(few))
        part = next((folder / "s.index").glob(f"*/{HEADER}")).parent
        hashes = np.load(part / "hashes.npy")
        counts = np.load(part / "num_samples.npy")
        wrong = sum(
            bytes(digest) != one[1] or count != one[0]
            for digest, count, one in zip(hashes, counts, expected, strict=True)
        )
        check_equal({"headers and hashes": float(wrong)}, 0)
        size = sum(path.stat().st_size for path in few) / len(few)
    medians = {key: statistics.median(values) for key, values in times.items()}
    report(
        "prepare",
        {
            "files": options.files,
            "hours": round(hours, 2),
            "kilobytes_a_file": round(size / 1000),
            "jobs": options.jobs,
            "times_real_time": {key: round(hours * 3600 / seconds) for key, seconds in medians.items()},
            "files_a_second": {key: round(options.files / seconds) for key, seconds in medians.items()},
            "faster_than_loop": round(medians["loop"] / medians["prepare"], 2),
            "faster_than_decoding": round(medians["decode"] / medians["prepare"], 2),
        },
    )


if __name__ == "__main__":
    main()
