"""Batched log-mel against transformers' `WhisperFeatureExtractor`, on the same clips and one thread.

Goals on 3 s clips: at least 10 times as fast as the extractor as it comes (padding to 30 s), not slower than its
unpadded form, and equal to both within 1e-4.
"""

from __future__ import annotations

import argparse

import torch
from _bench import compare, report
from transformers import WhisperFeatureExtractor

from speechlmm_encoders.whisper.log_mel import expand_silence, log_mel, padded_log_mel

RATE = 16_000


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--bins", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    extractor = WhisperFeatureExtractor(feature_size=options.bins)
    clips = [torch.randn(round(options.seconds * RATE)) * 0.1 for _ in range(options.clips)]
    arrays = [clip.numpy() for clip in clips]

    def theirs(padding: str = "max_length") -> torch.Tensor:
        return extractor(arrays, sampling_rate=RATE, return_tensors="pt", padding=padding).input_features

    def unpadded() -> torch.Tensor:
        return log_mel(clips, options.bins)[0]

    def windows() -> torch.Tensor:
        return expand_silence(*padded_log_mel(clips, options.bins, 30 * RATE), 3000)

    frames = unpadded().shape[2]
    seconds = compare(
        {
            "extractor": theirs,
            "extractor_unpadded": lambda: theirs("longest"),
            "log_mel": unpadded,
            "padded_log_mel": windows,
        },
        options.repeats,
    )
    report(
        "log_mel",
        {
            "clips": options.clips,
            "seconds_per_clip": options.seconds,
            "median_s": seconds,
            "max_difference_unpadded": (unpadded() - theirs("longest")[:, :, :frames]).abs().max().item(),
            "max_difference_windows": (windows() - theirs()).abs().max().item(),
            "ratio_to_extractor": seconds["extractor"] / seconds["log_mel"],
            "ratio_to_extractor_unpadded": seconds["extractor_unpadded"] / seconds["log_mel"],
            "ratio_of_windows_to_extractor": seconds["extractor"] / seconds["padded_log_mel"],
        },
    )


if __name__ == "__main__":
    main()
