"""Training steps on a GPU: a Whisper-large-shaped encoder with language models of 1B and 8B shape, LoRA and full.

Random weights in the published shapes, so that nothing is downloaded; noise with text at the rate of speech. The
encoder is frozen; `full` trains the adapter and the language model whole, `lora` the adapter and matrices of rank 16 on
the language model. The model is the one that `speechlmm-train run` builds: fp32 weights, gradients and Adam states (16
bytes for each trained parameter), multiplied in bf16 by autocast. `--weights bfloat16` keeps all of them in bf16 (8
bytes), which no run does: what it gives is an extra, and named so in the result. A pass is forward, backward and the
step of AdamW on every micro-batch of the same clips; batches lie on the GPU beforehand. Of each case and each way:

- tokens (positions of the language model, padding left out) and seconds of audio a second;
- MFU: the FLOPs that the real frames and tokens need, by the device's peak for dense bf16 products;
- peak memory; and of a forward of ours, how often the host reads from the device (any other wait is an error).

The ways: `packed` (batches from the batch plan, one row each) and `padded` (clips in random order, as many in a batch,
padded to the longest, as Hugging Face's collators do). Their summed token losses are compared first.

Without a GPU it says so in one line of JSON. `--device cpu --tiny` runs all of it on tiny shapes.

    python benchmarks/gpu_training.py [--cases 1b-lora 1b-full 8b-lora 8b-full] [--budget 8192] [--clips 256]

8b-full holds 120 GiB before its first activation: `--checkpointing`, and a smaller budget, make the most of the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from _bench import check_equal, compare, report
from _training import quiet
from batch_plan import LAWS
from train_throughput import conversations, to_device

from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.testing.reads import CountedReads
from speechlmm_train.batching.plan import BatchPlan
from speechlmm_train.compose import validate
from speechlmm_train.speed.flops import count_flops
from speechlmm_train.speed.peak import TERA, peak_flops
from speechlmm_train.trainer.checks import freeze_for
from speechlmm_train.trainer.initial_model import build_model
from speechlmm_train.trainer.tally import Work

RATE = 16_000
GIB = 2**30
WHISPER_LARGE = {"num_mel_bins": 128, "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20}
LLAMAS = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "tie_word_embeddings": False},
}
"""Shapes of Llama 3.2 1B and Llama 3.1 8B; their vocabulary has 128,256 rows."""
TINY_WHISPER = {"num_mel_bins": 16, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
TINY_LLAMAS = {
    "1b": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "tie_word_embeddings": True},
    "8b": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "tie_word_embeddings": False},
}
CASES = ("1b-lora", "1b-full", "8b-lora", "8b-full")


def config(case: str, options: argparse.Namespace) -> Any:
    """The run that a case stands for."""
    size, _, way = case.partition("-")
    encoder = TINY_WHISPER if options.tiny else WHISPER_LARGE
    own = TINY_LLAMAS[size] if options.tiny else {**LLAMAS[size], "vocab_size": 128_256}
    heads = {"num_attention_heads": 2 if options.tiny else 32, "num_key_value_heads": 1 if options.tiny else 8}
    decoder = {"model_type": "llama", "max_position_embeddings": 131_072, "rope_theta": 500_000.0, **heads, **own}
    lora = {"name": "text", "target_module": "text_decoder.model", "task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 32}
    return validate(
        {
            "model": {
                "audio_encoder": {
                    "type": "whisper_unrestricted",
                    "model": {**encoder, "encoder_ffn_dim": 4 * encoder["d_model"]},
                },
                "audio_adapter": {"type": "mlp", "stack": 4, "num_layers": 2, "hidden_size": own["hidden_size"]},
                "text_decoder": {"type": "causal_lm", "tokenizer": "bytes", "model": decoder},
            },
            "data": {"train": ["none.jsonl"]},
            "training": {
                "output_dir": "none",
                "max_steps": 1,
                "freeze_modules": ["audio_encoder"],
                "lora_adapters": [lora] if way == "lora" else [],
                "bf16": options.dtype == "bfloat16",
                "use_cpu": options.device == "cpu",
            },
        }
    )


def build(checked: Any, options: argparse.Namespace) -> SpeechLMM:
    """The model, on its device from the start: on the host, random weights of 8B would take minutes."""
    with torch.device(options.device):
        model = build_model(checked, None)
    if options.weights == "bfloat16":
        model.bfloat16()
    model.to(options.device)
    freeze_for(model, checked.resolved_stages()[0])
    if options.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


class Way:
    """One way to lay the clips out, and a pass over them."""

    def __init__(self, model: SpeechLMM, optimizer: Any, processor: SpeechLMMProcessor, options: Any) -> None:
        self.model, self.optimizer, self.processor, self.options = model, optimizer, processor, options
        self.work = Work(processor)
        self.batches: list[Any] = []
        self.peak = 0

    def lay_out(self, samples: Sequence[Any], batches: Sequence[Sequence[int]], *, packed: bool) -> None:
        """Collates the batches and moves them to the device."""
        for batch in batches:
            collated = self.processor.collate([samples[number] for number in batch], packed=packed)
            self.work.add(collated)
            self.batches.append(to_device(collated, self.options.device))

    def loss(self, batch: Any) -> Any:
        """The summed token loss."""
        half = self.options.dtype == "bfloat16"
        with torch.autocast(self.options.device, torch.bfloat16, enabled=half):
            return self.model(**batch).losses["lm"].sum

    def total(self) -> float:
        """The summed token loss of all clips."""
        with torch.no_grad():
            return float(sum(self.loss(batch).double() for batch in self.batches))

    def reads(self) -> int:
        """How often the host reads from the device in a forward."""
        with CountedReads() as counted, torch.no_grad():
            self.loss(self.batches[0])
        return counted.reads

    def train(self) -> None:
        """One pass over all clips."""
        on_gpu = self.options.device == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        for batch in self.batches:
            (self.loss(batch) / batch["num_items"]["supervised_tokens"]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())

    def figures(self, seconds: float, flops: Any, peak: float | None) -> dict[str, Any]:
        """What is reported of a pass that took so long."""
        sums = self.work.sums
        return {
            "micro_batches": len(self.batches),
            "tokens_per_second": round(sums["positions"] / seconds, 1),
            "audio_seconds_per_second": round(sums["audio_seconds"] / seconds, 1),
            "position_padding": round(1 - sums["positions"] / sums["held_positions"], 3),
            "frame_padding": round(1 - sums["frames"] / sums["held_frames"], 3),
            "mfu": round(flops(sums) / seconds / peak, 4) if peak else None,
            "peak_memory_gib": round(self.peak / GIB, 2) if self.peak else None,
        }


def state_bytes(trained: Sequence[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """What weights, their gradients and the optimiser's state take."""
    states = [state for one in trained for state in optimizer.state[one].values() if isinstance(state, torch.Tensor)]
    tensors = [*trained, *trained, *(state for state in states if state.dim())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure(case: str, law: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both ways of one case."""
    checked = config(case, options)
    rng = np.random.default_rng(0)
    seconds = LAWS[law](options.clips, rng)
    chats = conversations(seconds, rng)
    processor = SpeechLMMProcessor.from_config(checked.model)
    samples = [processor.sample(chat, with_answer=True) for chat in chats]
    sizes = np.array([processor.sizes(chat, [int(s * RATE)]) for chat, s in zip(chats, seconds, strict=True)])
    plan = BatchPlan(sizes[:, 0], sizes[:, 1], token_budget=max(options.budget, int(sizes[:, 0].max())))
    planned = [plan.epoch(0).batch(number) for number in range(len(plan.epoch(0)))]
    mixed, size = rng.permutation(options.clips).tolist(), -(-options.clips // len(planned))
    random = [mixed[first : first + size] for first in range(0, options.clips, size)]
    flops = count_flops(checked, checked.resolved_stages()[0], processor)
    peak = None
    if options.peak_tflops is not None:
        peak = options.peak_tflops * TERA
    elif options.device == "cuda":
        peak = peak_flops(torch.cuda.get_device_name(), half=options.dtype == "bfloat16", tf32=False)
    model = build(checked, options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A learning rate of zero: all of a step's work, while the weights stay the same for both ways.
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=options.device == "cuda")
    ways = {name: Way(model, optimizer, processor, options) for name in ("packed", "padded")}
    ways["packed"].lay_out(samples, planned, packed=True)
    ways["padded"].lay_out(samples, random, packed=False)
    losses = {name: way.total() for name, way in ways.items()}
    difference = abs(losses["packed"] / losses["padded"] - 1)
    check_equal({"summed token loss": difference}, 1e-2 if options.dtype == "bfloat16" else 1e-5)
    reads = ways["packed"].reads()
    medians = compare({name: way.train for name, way in ways.items()}, options.repeats)
    own = state_bytes(trained, optimizer)
    return {
        "what": "as `run` trains" if options.weights == "float32" else "an extra: `run` does not train bf16 weights",
        "bytes_by_trained_parameter": round(own / sum(parameter.numel() for parameter in trained), 2),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained": sum(parameter.numel() for parameter in trained),
        "loss_relative_difference": difference,
        "host_reads_in_forward": reads,
        **{name: way.figures(medians[name], flops, peak) for name, way in ways.items()},
        "packed_against_padded": round(medians["padded"] / medians["packed"], 3),
    }


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--laws", nargs="+", choices=tuple(LAWS), default=["librispeech_like"])
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--budget", type=int, default=8192, help="positions in a micro-batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of products, by autocast")
    parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32", help="bfloat16 is an extra")
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    parser.add_argument("--peak-tflops", type=float, help="of the device, where it is not known")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes")
    options = parser.parse_args()
    if options.weights == "bfloat16" and options.dtype == "float32":
        parser.error("--weights bfloat16 is multiplied in bfloat16; leave --dtype out")
    if options.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"benchmark": "gpu_training", "gpu": None, "note": "there is no GPU; nothing was measured"}))
        return
    quiet()
    found: dict[str, Any] = {}
    for case in options.cases:
        for law in options.laws:
            began = time.perf_counter()
            with contextlib.suppress(torch.OutOfMemoryError):
                found[f"{case}, {law}"] = measure(case, law, options)
            found.setdefault(f"{case}, {law}", {"out_of_memory": True})["seconds"] = time.perf_counter() - began
            gc.collect()
            if options.device == "cuda":
                torch.cuda.empty_cache()
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    settings = {
        name: getattr(options, name) for name in ("clips", "budget", "weights", "dtype", "checkpointing", "tiny")
    }
    report("gpu_training", {"gpu": device, **settings, **found})


if __name__ == "__main__":
    main()
