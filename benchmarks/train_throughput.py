"""Training throughput in seconds of audio a second: packed rows in the plan's order against the padded ways.

Encoder 4 x 256, text decoder 8 x 512, real log-mel frames of noise, random text at the rate of speech; a pass is
forward, backward and an optimiser step on every micro-batch of the same clips. Collating is left out: data workers do
it. All ways use the same weights, dtype and loss head; the summed token loss over all clips is compared first.

- `plan`: this project's way: packed rows, batches from the batch plan.
- `padded`: batches of `--batch` clips in random order, padded to their longest, as Hugging Face's collators do.
- `length_grouped`: the same in the order of Hugging Face's `LengthGroupedSampler`.
- `pad_to_30_s`: Whisper's own way, every clip padded to 30 s and all 1500 frames handed on, batches as `padded`.
- `pad_to_30_s_trimmed`: the encoder padded to 30 s, the silence's frames dropped before the text decoder.

    python benchmarks/train_throughput.py [--clips 192] [--repeats 3] [--dtype float32|bfloat16] [--device cpu]
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_pt_utils import LengthGroupedSampler

sys.path.insert(0, str(Path(__file__).parent))
from _bench import compare, report
from batch_plan import LAWS

from speechlmm_core.config import ModelConfig
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.batching.plan import BatchPlan
from speechlmm_train.process import keep_freed_memory

RATE = 16_000
STACK = 4
CHARACTERS_PER_SECOND = 4
"""The tokenizer is one of bytes; so many make as many tokens a second as subwords of spoken language do."""


def model_config(encoder: dict[str, Any]) -> ModelConfig:
    """The model with one of the encoders."""
    numbers = {"d_model": 256, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 1024}
    decoder = {"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 32768}
    return ModelConfig.model_validate(
        {
            "audio_encoder": {**encoder, "model": {**numbers, "num_mel_bins": 80}},
            "audio_adapter": {"type": "mlp", "stack": STACK, "num_layers": 1},
            "text_decoder": {"type": "causal_lm", "tokenizer": "bytes", "model": {**decoder, **heads}},
        }
    )


def conversations(seconds: np.ndarray[Any, Any], rng: np.random.Generator) -> list[list[dict[str, Any]]]:
    """Noise with text of the length that its duration would hold."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz     "))
    found: list[list[dict[str, Any]]] = []
    for duration in seconds:
        noise = rng.uniform(-0.1, 0.1, int(duration * RATE)).astype(np.float32)
        text = "".join(rng.choice(letters, 1 + int(duration * CHARACTERS_PER_SECOND * rng.uniform(0.7, 1.3))))
        audio = {"type": "audio", "array": noise, "sampling_rate": RATE}
        user = [audio, {"type": "text", "text": "Transcribe the speech."}]
        found.append([{"role": "user", "content": user}, {"role": "assistant", "content": text}])
    return found


class Way:
    """One way to train on the clips."""

    def __init__(
        self,
        model: SpeechLMM,
        processor: SpeechLMMProcessor,
        chats: Sequence[list[dict[str, Any]]],
        batches: Sequence[Sequence[int]],
        *,
        optimizer: torch.optim.Optimizer,
        options: argparse.Namespace,
        packed: bool,
    ) -> None:
        self.model, self.options = model, options
        samples = [processor.sample(chat, with_answer=True) for chat in chats]
        self.batches = [
            to_device(processor.collate([samples[i] for i in batch], packed=packed), options.device)
            for batch in batches
        ]
        self.optimizer = optimizer

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """The summed token loss."""
        with torch.autocast(self.options.device, torch.bfloat16, enabled=self.options.dtype == "bfloat16"):
            return self.model(**batch).losses["lm"].sum

    def total(self) -> float:
        """The summed token loss over all clips, in fp32."""
        with torch.no_grad():
            return float(sum(self.model(**batch).losses["lm"].sum.double() for batch in self.batches))

    def train(self) -> None:
        """One pass over all clips."""
        self.model.train()
        for batch in self.batches:
            (self.loss(batch) / batch["num_items"]["supervised_tokens"]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.options.device == "cuda":
            torch.cuda.synchronize()


def to_device(value: Any, device: str) -> Any:
    """Moves the tensors of a nested batch."""
    if isinstance(value, Tensor):
        return value.to(device)
    return {key: to_device(entry, device) for key, entry in value.items()} if isinstance(value, dict) else value


def measure(law: str, options: argparse.Namespace) -> dict[str, Any]:
    """Throughput of every way on the clips of one law."""
    rng = np.random.default_rng(0)
    seconds, size = LAWS[law](options.clips, rng), options.batch
    chats = conversations(seconds, rng)
    configs = {
        "ours": model_config({"type": "whisper_unrestricted"}),
        "whole": model_config({"type": "whisper", "keep_padding": True}),
        "trimmed": model_config({"type": "whisper"}),
    }
    torch.manual_seed(0)
    models = {name: SpeechLMM.from_model_config(config).to(options.device) for name, config in configs.items()}
    for model in models.values():
        model.load_state_dict(models["ours"].state_dict())
    processors = {name: SpeechLMMProcessor.from_config(config) for name, config in configs.items()}

    sizes = np.array([processors["ours"].sizes(chat, [int(s * RATE)]) for chat, s in zip(chats, seconds, strict=True)])
    plan = BatchPlan(sizes[:, 0], sizes[:, 1], token_budget=max(int(size * sizes[:, 0].mean()), sizes[:, 0].max()))
    planned = [plan.epoch(0).batch(number) for number in range(len(plan.epoch(0)))]
    mixed = rng.permutation(options.clips).tolist()
    random = [mixed[start : start + size] for start in range(0, options.clips, size)]
    torch.manual_seed(0)
    order = list(LengthGroupedSampler(size, lengths=sizes[:, 1].tolist()))
    grouped = [order[start : start + size] for start in range(0, options.clips, size)]

    # A learning rate of zero: all of a step's work, while the weights stay the same for every way.
    optimizers = {name: torch.optim.AdamW(m.parameters(), lr=0.0, weight_decay=0.0) for name, m in models.items()}

    def way(name: str, batches: Sequence[Sequence[int]], *, packed: bool = False) -> Way:
        return Way(
            models[name], processors[name], chats, batches, optimizer=optimizers[name], options=options, packed=packed
        )

    ways = {
        "plan": way("ours", planned, packed=True),
        "padded": way("ours", random),
        "length_grouped": way("ours", grouped),
        "pad_to_30_s": way("whole", random),
        "pad_to_30_s_trimmed": way("trimmed", random),
    }
    losses = {name: ways[name].total() for name in ("plan", "padded", "length_grouped")}
    error = max(abs(loss / losses["plan"] - 1) for loss in losses.values())
    assert error < 1e-5, f"the ways compute different losses: {losses}"
    gc.collect()
    medians = compare({name: one.train for name, one in ways.items()}, options.repeats)
    return {
        "audio_seconds": float(seconds.sum()),
        "loss_relative_difference": error,
        "fill": plan.fill(),
        "micro_batches": {name: len(one.batches) for name, one in ways.items()},
        "audio_seconds_per_second": {name: float(seconds.sum()) / median for name, median in medians.items()},
        "plan_against": {name: median / medians["plan"] for name, median in medians.items() if name != "plan"},
    }


def main() -> None:
    """Prints throughputs and ratios as JSON."""
    keep_freed_memory()  # for all ways alike, as `speechlmm-train run` does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=192)
    parser.add_argument("--batch", type=int, default=16, help="clips in a batch, or on average")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--laws", nargs="+", choices=tuple(LAWS), default=list(LAWS))
    options = parser.parse_args()
    found = {law: measure(law, options) for law in options.laws}
    settings = {name: getattr(options, name) for name in ("clips", "batch", "dtype", "device")}
    report("train_throughput", settings | found)


if __name__ == "__main__":
    main()
