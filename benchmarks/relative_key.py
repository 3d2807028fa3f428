"""Relative-key attention of the conformer encoders against transformers' own, forward and backward, on one thread.

Goal: not slower at any length, and equal within 1e-5. What is saved in memory for the gradient is printed too.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from _bench import check_equal, compare, report
from torch import Tensor, nn
from transformers import Wav2Vec2BertConfig
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertSelfAttention

from speechlmm_encoders.relative_key import RelativeKeyAttention


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes kept for the gradient, each storage once."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()  # kept until the end, so that no address is used twice
        total = sum(sizes.values())
    del output
    return total


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    numbers: dict[str, Any] = {"attn_implementation": "sdpa"}
    theirs = Wav2Vec2BertSelfAttention(Wav2Vec2BertConfig(**numbers))
    ours = RelativeKeyAttention(copy.deepcopy(theirs))
    values = torch.randn(options.batch, options.frames, 1024)
    mask = torch.ones(options.batch, 1, 1, options.frames, dtype=torch.bool)
    mask[1:, ..., options.frames // 2 :] = False

    def forward(module: nn.Module) -> Tensor:
        return module(values, attention_mask=mask)[0]

    def infer(module: nn.Module) -> Tensor:
        with torch.no_grad():
            return forward(module)

    def train(module: nn.Module) -> None:
        module.zero_grad()
        forward(module).square().sum().backward()

    def gradients(module: nn.Module) -> Tensor:
        train(module)
        return torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None])

    expected = gradients(theirs)
    differences = {
        "forward": (infer(theirs) - infer(ours)).abs().max().item(),
        "gradient, of its largest value": ((gradients(ours) - expected).abs().max() / expected.abs().max()).item(),
    }
    check_equal(differences, 1e-5)
    seconds = compare(
        {
            "transformers_forward": lambda: infer(theirs),
            "ours_forward": lambda: infer(ours),
            "transformers_both": lambda: train(theirs),
            "ours_both": lambda: train(ours),
        },
        options.repeats,
    )
    report(
        "relative_key",
        {
            "batch": options.batch,
            "frames": options.frames,
            "median_s": seconds,
            "differences": differences,
            "saved_mb": {
                "transformers": saved_bytes(lambda: forward(theirs)) / 1e6,
                "ours": saved_bytes(lambda: forward(ours)) / 1e6,
            },
            "ratio_forward": seconds["transformers_forward"] / seconds["ours_forward"],
            "ratio_both": seconds["transformers_both"] / seconds["ours_both"],
        },
    )


if __name__ == "__main__":
    main()
