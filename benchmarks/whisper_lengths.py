"""`whisper_unrestricted` against `whisper` (30 s windows) on short clips: same weights, fp32, log-mel included.

Goals: at least 7 times as fast on 3 s clips, at least 2.5 times on 10 s clips. The two do not compute the same frames
(silence takes part in the attention of one), so it is checked that they agree on clips of exactly 30 s.
"""

from __future__ import annotations

import argparse

import torch
from _bench import compare, report

from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import EncoderConfig, encoders
from speechlmm_core.media.medium import Medium

RATE = 16_000
# The encoders of openai/whisper-tiny and openai/whisper-base (arXiv:2212.04356, table 1).
SIZES = {
    "tiny": {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536},
    "base": {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
}


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    numbers = {"num_mel_bins": 80, **SIZES[options.size]}
    configs: dict[str, EncoderConfig] = {
        name: encoders.validate({"type": name, "model": numbers}) for name in ("whisper", "whisper_unrestricted")
    }
    modules = {name: config.build(BuildContext()).eval() for name, config in configs.items()}
    modules["whisper_unrestricted"].load_state_dict(modules["whisper"].state_dict())
    preprocessors = {name: config.build_preprocessor() for name, config in configs.items()}

    @torch.inference_mode()
    def encode(name: str, media: list[Medium]) -> torch.Tensor:
        return modules[name](preprocessors[name](media)).values

    whole = [Medium(torch.randn(30 * RATE) * 0.1, RATE)]
    difference = (encode("whisper", whole) - encode("whisper_unrestricted", whole)).abs().max().item()
    results = {}
    for duration in (3, 10):
        media = [Medium(torch.randn(duration * RATE) * 0.1, RATE) for _ in range(options.clips)]
        seconds = compare(
            {name: lambda name=name, media=media: encode(name, media) for name in modules}, options.repeats
        )
        ratio = seconds["whisper"] / seconds["whisper_unrestricted"]
        results[f"{duration}_s"] = {"median_s": seconds, "ratio": ratio}
    report(
        "whisper_lengths",
        {"size": options.size, "clips": options.clips, "max_difference_at_30_s": difference, **results},
    )


if __name__ == "__main__":
    main()
