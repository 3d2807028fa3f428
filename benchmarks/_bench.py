"""What the benchmarks share: running alternatives in turns in one process, and printing medians as JSON.

The machines are shared and drift, so that only interleaved runs of the same process compare.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def compare(cases: Mapping[str, Callable[[], Any]], repeats: int = 7, *, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each case; every round runs each case once."""
    for _ in range(warmup):
        for run in cases.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def check_equal(differences: Mapping[str, float], tolerance: float) -> None:
    """Ends the benchmark where alternatives do not compute the same: their times would mean nothing."""
    wrong = {name: difference for name, difference in differences.items() if not difference <= tolerance}
    if wrong:
        raise SystemExit(f"not equal within {tolerance:g}: {wrong}")


def report(name: str, result: Mapping[str, Any]) -> None:
    """Prints a benchmark's result as JSON."""
    print(json.dumps({"benchmark": name, **result}, indent=2))
