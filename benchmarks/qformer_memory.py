"""Peak memory of the Q-Former adapter (forward and backward) against the duration of the clip, up to half an hour.

Each duration runs in a process of its own, so that none finds memory that another has left behind. On the CPU the peak
is the process's resident memory beyond what it held before (Linux), on a GPU what torch's allocator gave out.
Goal: linear, so that the last minutes cost no more than 1.1 times the first. There is no alternative to compare with.

    python benchmarks/qformer_memory.py --size 128
    python benchmarks/qformer_memory.py --size 768 --device cuda
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from _bench import report

MINUTES = (2, 5, 10, 20, 30)
RATE = 50
MIB = 2**20

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Tells glibc to give freed tensors back at once, so that resident memory is what is in use."""


def resident(field: str) -> int:
    """Bytes of resident memory: now (`VmRSS`), or the most so far (`VmHWM`)."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def measure(minutes: int, size: int, device: str, *, whole: bool) -> float:
    """Peak in MiB of one clip, forward and backward."""
    import torch

    from speechlmm_adapters.qformer.config import QFormerAdapterConfig
    from speechlmm_core.features import Features
    from speechlmm_core.interfaces.context import BuildContext

    torch.set_num_threads(1)
    options: dict[str, Any] = {"window_seconds": None, "num_queries": 32} if whole else {"context_fraction": 0.25}
    config = QFormerAdapterConfig(
        hidden_size=size, num_attention_heads=size // 64, intermediate_size=4 * size, **options
    )
    ctx = BuildContext(input_size=size, output_size=size, frame_rate=Fraction(RATE))
    adapter = config.build(ctx).to(device).train()

    def step(num_frames: int) -> None:
        values = torch.randn(1, num_frames, size, device=device, requires_grad=True)
        adapter(Features(values, torch.tensor([num_frames], device=device))).values.sum().backward()

    step(RATE)
    if device == "cpu":
        before = resident("VmRSS")
        step(minutes * 60 * RATE)
        return (resident("VmHWM") - before) / MIB
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(minutes * 60 * RATE)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def series(durations: list[int], size: int, device: str, *, whole: bool) -> dict[str, object]:
    """The peaks, and how much each further minute costs; a ratio of 1 is a straight line."""
    peaks: dict[int, float] = {}
    for minutes in durations:
        command = [sys.executable, __file__, "--minutes", str(minutes), "--size", str(size), "--device", device]
        done = subprocess.run(
            [*command, *["--whole"] * whole], env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=True
        )
        peaks[minutes] = json.loads(done.stdout)
    slopes = [(peaks[after] - peaks[before]) / (after - before) for before, after in pairwise(durations)]
    return {
        "mib": {str(minutes): round(peak, 1) for minutes, peak in peaks.items()},
        "mib_per_further_minute": [round(slope, 2) for slope in slopes],
        "last_slope_over_first": round(slopes[-1] / slopes[0], 3),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128, help="width of frames and layers, a multiple of 64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--durations", type=int, nargs="+", default=MINUTES, help="minutes, three or more")
    parser.add_argument("--minutes", type=int, help="measure one duration in this process")
    parser.add_argument("--whole", action="store_true", help="with --minutes: queries over the whole clip")
    options = parser.parse_args()
    if options.minutes is not None:
        print(json.dumps(measure(options.minutes, options.size, options.device, whole=options.whole)))
        return
    report(
        "qformer_memory",
        {
            "size": options.size,
            "device": options.device,
            "windows of 0.333 s": series(list(options.durations), options.size, options.device, whole=False),
            "whole clips, 32 queries": series(list(options.durations), options.size, options.device, whole=True),
        },
    )


if __name__ == "__main__":
    main()
