"""Reads ten seconds from the middle of a long file, against reading the whole; both give the same samples."""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import soundfile
import torch
from _bench import compare, report

from speechlmm_core.media.audio import load_audio

RATE = 16_000


def write(path: Path, minutes: float) -> None:
    """Noise whose loudness changes slowly, so that lossless coding has something to do."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", RATE, 1, subtype="PCM_16") as file:
        for second in range(round(60 * minutes)):
            file.write(0.3 * abs(np.sin(second / 7)) * rng.standard_normal(RATE).clip(-3, 3) / 3)


def main() -> None:
    """Measures WAV and FLAC."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    start = 30 * options.minutes
    end = start + options.seconds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = {}
        for suffix in ("wav", "flac"):
            path = Path(folder) / f"long.{suffix}"
            write(path, options.minutes)
            whole = partial(load_audio, path, sampling_rate=RATE)
            segment = partial(load_audio, path, sampling_rate=RATE, start=start, end=end)
            same = torch.equal(segment().values, whole().values[round(start * RATE) : round(end * RATE)])
            seconds = compare({"whole": whole, "segment": segment}, options.repeats)
            result[suffix] = {
                "same_samples": same,
                "median_s": seconds,
                "ratio": seconds["whole"] / seconds["segment"],
            }
    report("audio_io", {"minutes": options.minutes, "seconds": options.seconds, **result})


if __name__ == "__main__":
    main()
