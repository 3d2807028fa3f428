"""Filter banks against transformers' `SeamlessM4TFeatureExtractor`, on the same clips and one thread.

Goal on 3 s clips: at least 3 times as fast, and equal within 1e-5 of the largest value.
"""

from __future__ import annotations

import argparse

import torch
from _bench import check_equal, compare, report
from transformers import SeamlessM4TFeatureExtractor

from speechlmm_encoders.fbank.features import normalized_fbank

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
    extractor = SeamlessM4TFeatureExtractor(feature_size=options.bins, num_mel_bins=options.bins)
    clips = [torch.randn(round(options.seconds * RATE)) * 0.1 for _ in range(options.clips)]
    arrays = [clip.numpy() for clip in clips]

    def theirs() -> torch.Tensor:
        features = extractor(arrays, sampling_rate=RATE, return_tensors="pt", pad_to_multiple_of=None)
        return features.input_features

    def ours() -> torch.Tensor:
        return normalized_fbank(clips, options.bins)[0]

    expected = theirs()
    difference = ((ours() - expected).abs().max() / expected.abs().max()).item()
    check_equal({"fbank": difference}, 1e-5)
    seconds = compare({"extractor": theirs, "fbank": ours}, options.repeats)
    report(
        "fbank",
        {
            "clips": options.clips,
            "seconds_per_clip": options.seconds,
            "median_s": seconds,
            "relative_difference": difference,
            "ratio_to_extractor": seconds["extractor"] / seconds["fbank"],
        },
    )


if __name__ == "__main__":
    main()
