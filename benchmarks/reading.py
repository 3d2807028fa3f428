"""Reads 16 kHz FLAC into log-mel features that are ready for the model, on one core; against a decoder process a file.

Goals: at least 1,800 times real time, and at least 20 times the decoder process (the `ffmpeg` command, or where it is
not installed a Python process that decodes with libsndfile; the result says which), with the same features.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import soundfile
import torch
from _bench import check_equal, compare, report

from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.media.audio import audio_info
from speechlmm_core.media.medium import Medium

RATE = 16_000
PYTHON_DECODER = (
    "import sys, soundfile; sys.stdout.buffer.write(soundfile.read(sys.argv[1], dtype='float32')[0].tobytes())"
)


def write(folder: Path, clips: int, seconds: float) -> list[Path]:
    """Clips of speech-like sound: harmonics that glide, syllables, a little noise. They compress like speech."""
    rng = np.random.default_rng(0)
    paths: list[Path] = []
    for number in range(clips):
        times = np.arange(round(rng.uniform(0.6, 1.4) * seconds * RATE)) / RATE
        pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * times + rng.uniform(0, 6))
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        voice = np.sum([np.sin(k * phase) / k**1.3 for k in range(1, 25)], axis=0)
        syllables = np.clip(np.sin(2 * np.pi * 3.5 * times + rng.uniform(0, 6)), 0, 1)
        samples = 0.08 * voice * syllables + 0.002 * rng.standard_normal(len(times))
        paths.append(folder / f"{number}.flac")
        soundfile.write(paths[-1], samples, RATE, subtype="PCM_16")
    return paths


def decode_in_process(path: Path) -> Medium:
    """What reads a file by a process of its own."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg:
        output = ["-f", "f32le", "-ac", "1", "-ar", str(RATE), "pipe:1"]
        command = [ffmpeg, "-v", "error", "-threads", "1", "-i", str(path), *output]
    else:
        command = [sys.executable, "-c", PYTHON_DECODER, str(path)]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    return Medium(torch.from_numpy(np.frombuffer(data, np.float32).copy()), RATE)


def main() -> None:
    """Measures both, and reading alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--encoder", default="whisper_unrestricted")
    parser.add_argument("--bins", type=int, default=80)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    model = {"num_mel_bins": options.bins} if options.encoder.startswith("whisper") else {}
    encoder = encoders.validate({"type": options.encoder, **({"model": model} if model else {})})
    preprocess = encoder.build_preprocessor()
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), options.clips, options.seconds)
        total = sum(audio_info(path).duration_s for path in paths)
        batches = [paths[at : at + options.batch] for at in range(0, len(paths), options.batch)]

        def features(load: Callable[[Path], Medium]) -> list[dict[str, torch.Tensor]]:
            return [preprocess([load(path) for path in batch]) for batch in batches]

        def ours(path: Path) -> Medium:
            return encoder.load({"type": "audio", "path": str(path)})

        pairs = zip(features(ours), features(decode_in_process), strict=True)
        difference = max(float((a["input_features"] - b["input_features"]).abs().max()) for a, b in pairs)
        check_equal({"features": difference}, 1e-5)
        media = [[ours(path) for path in batch] for batch in batches]
        seconds = compare(
            {
                "ours": lambda: features(ours),
                "headers_only": lambda: [audio_info(path) for path in paths],
                "decoding_only": lambda: [ours(path) for path in paths],
                "features_only": lambda: [preprocess(batch) for batch in media],
            },
            options.repeats,
        )
        # Both once a round, as above, but fewer rounds: the processes take long.
        against = compare(
            {"ours": lambda: features(ours), "process": lambda: features(decode_in_process)},
            max(1, options.repeats // 3),
            warmup=0,
        )
    report(
        "reading",
        {
            "clips": options.clips,
            "audio_s": total,
            "encoder": options.encoder,
            "median_s": seconds,
            "times_real_time": {name: total / value for name, value in seconds.items()},
            "decoder_process": "ffmpeg" if shutil.which("ffmpeg") else "python with libsndfile",
            "max_difference": difference,
            "ratio_to_decoder_process": against["process"] / against["ours"],
        },
    )


if __name__ == "__main__":
    main()
