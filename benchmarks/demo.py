"""The demo as a user runs it, over several seeds: medians of time, memory and error rates.

Each seed is a process of its own, one after the other, into a folder of its own that starts out empty, so that
synthesis counts. Prints JSON: what each run reported, the medians, and which of the goals they meet.

Variants of the demo, by a name and the overrides that make them, run in turns with it, seed by seed:

    python benchmarks/demo.py --variant cif model/audio_adapter=cif --variant ctc model/audio_adapter=ctc

Goal for a variant: its median WER lies at most 5 points above the demo's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GOALS: dict[str, tuple[float, bool]] = {
    "seconds": (300.0, False),
    "peak_rss_bytes": (4e9, False),
    "wer": (0.02, False),
    "wer_unseen_voice": (0.15, False),
    "wer_shuffled_audio": (0.60, True),
}
"""By figure: the bound of the median, and whether it has to be reached from above."""
BEHIND = 0.05
"""How far a variant's median WER may lie above the demo's."""
FIGURES = ("seconds", "peak_rss_bytes", "wer", "cer", "wer_unseen_voice", "wer_shuffled_audio", "steps")


def run(seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The report of one demo."""
    program = "from speechlmm_train.cli import main; main()"
    command = [sys.executable, "-c", program, "demo", "--output-dir", str(folder), "--seed", str(seed), "--no-progress"]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"seed {seed} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def main() -> None:
    """Runs the seeds, prints JSON, and exits 1 where a median misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output-dir", type=Path, help="keep the demos here, as seed-N; otherwise nowhere")
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "OVERRIDE"),
        help="another demo to run beside it",
    )
    parser.add_argument("overrides", nargs="*", help="further arguments of every demo, after --")
    args = parser.parse_args()
    variants = {"demo": [], **{name: overrides for name, *overrides in args.variant}}
    runs: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in variants}
    with tempfile.TemporaryDirectory() as temporary:
        root: Path = args.output_dir or Path(temporary)
        for seed in args.seeds:
            for name, overrides in variants.items():
                folder = root / (f"seed-{seed}" if name == "demo" else f"{name}-seed-{seed}")
                runs[name][seed] = run(seed, folder, [*args.overrides, *overrides])
    medians = {
        name: {figure: statistics.median(report[figure] for report in reports.values()) for figure in FIGURES}
        for name, reports in runs.items()
    }
    met = {
        name: medians["demo"][name] >= bound if at_least else medians["demo"][name] <= bound
        for name, (bound, at_least) in GOALS.items()
    }
    behind = {name: medians[name]["wer"] - medians["demo"]["wer"] for name in variants if name != "demo"}
    met |= {f"{name} behind": points <= BEHIND for name, points in behind.items()}
    seconds = {name: medians[name]["seconds"] / medians["demo"]["seconds"] for name in behind}
    result = {"runs": runs, "medians": medians, "wer_behind": behind, "ratio_seconds": seconds}
    print(json.dumps({**result, "goals": {**GOALS, "wer_behind": (BEHIND, False)}, "met": met}, indent=2))
    sys.exit(0 if all(met.values()) else 1)


if __name__ == "__main__":
    main()
