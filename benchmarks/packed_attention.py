"""One packed row, segment by segment, against a padded batch and against a dense block mask over the row.

A tiny language model's forward and backward pass over samples of log-normal lengths, random order, stock attention in
the alternatives; the summed token loss of all three agrees.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parent))
from _bench import compare, report

from speechlmm_core.attention.packed import packed_attention

VOCABULARY = 512


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--median-length", type=int, default=90)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=args.width,
        intermediate_size=3 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        max_position_embeddings=8192,
        use_cache=False,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    drawn = np.exp(np.random.default_rng(0).normal(np.log(args.median_length), 0.7, args.samples))
    lengths: list[int] = np.clip(drawn, 8, 1024).astype(int).tolist()
    ids = [torch.randint(0, VOCABULARY, (n,)) for n in lengths]
    row, batch = torch.cat(ids), torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    at = torch.cat([torch.arange(n) for n in lengths])
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    block = (sample[:, None] == sample[None]) & (torch.arange(len(row))[:, None] >= torch.arange(len(row))[None])
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)

    def loss(logits: Tensor) -> Tensor:
        value = F.cross_entropy(logits, row, reduction="sum")
        model.zero_grad()
        value.backward()
        return value.detach()

    def packed() -> Tensor:
        with packed_attention(model):
            segments = {"cu_seqlens": bounds, "lengths": lengths}
            return loss(model(row[None], position_ids=at[None], segments=segments, use_cache=False).logits[0])

    def padded() -> Tensor:
        return loss(model(batch, attention_mask=mask.long()).logits[mask])

    def dense() -> Tensor:
        return loss(model(row[None], position_ids=at[None], attention_mask=block[None, None]).logits[0])

    cases = {"packed": packed, "padded": padded, "dense_mask": dense}
    values = [run() for run in cases.values()]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-5, atol=0)
    seconds = compare(cases, args.repeats)
    report(
        "packed_attention",
        {
            "lengths": lengths,
            "padding": 1 - sum(lengths) / batch.numel(),
            "seconds": seconds,
            "ratio": {name: seconds[name] / seconds["packed"] for name in ("padded", "dense_mask")},
        },
    )


if __name__ == "__main__":
    main()
