"""What benchmarks of whole trainings share: a corpus on disk, models of two sizes, and a clock on a run's steps."""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from _demo_model import demo_model
from numpy.typing import NDArray

RATE = 16_000
CHARACTERS_PER_SECOND = 4
"""The tokenizer is one of bytes; so many make as many tokens a second as subwords of spoken language do."""

LORA = [
    {"name": "text", "target_module": "text_decoder.model", "task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 32},
    {"name": "audio", "target_module": "audio_encoder.model", "task_type": "FEATURE_EXTRACTION", "r": 8},
]
"""The two adapters that the first SpeechLMM's page shows; what joins the two towers is trained whole."""


def medium_model() -> dict[str, Any]:
    """The `model:` section of an encoder of 4 x 256 and a text decoder of 8 x 512."""
    encoder = {"d_model": 256, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 1024}
    decoder = {"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 32768}
    return {
        "audio_encoder": {"type": "whisper_unrestricted", "model": {**encoder, "num_mel_bins": 80}},
        "audio_adapter": {"type": "mlp", "stack": 4, "num_layers": 1},
        "text_decoder": {"type": "causal_lm", "tokenizer": "bytes", "model": {**decoder, **heads}},
    }


MODELS = {"demo": demo_model, "medium": medium_model}


def cpu_run(manifest: Path, out: Path, options: argparse.Namespace, **training: Any) -> dict[str, Any]:
    """A run on the CPU at a constant rate, which keeps nothing.

    Args:
        manifest: What it trains on.
        out: Its folder.
        options: `model`, one of `MODELS`; `dtype`, ``bfloat16`` or another.
        **training: Further settings.
    """
    own = {"use_cpu": True, "lr_scheduler_type": "constant", "save_steps": None, "report_to": []}
    own |= {"output_dir": str(out), "bf16": options.dtype == "bfloat16"}
    return {
        "model": MODELS[options.model](),
        "data": {"train": [str(manifest)]},
        "training": own | training,
    }


def make_corpus(folder: Path, seconds: NDArray[np.float64], seed: int = 0) -> Path:
    """Clips of noise as FLAC with text of the length that they would hold; returns the manifest."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz     "))
    lines: list[str] = []
    for number, duration in enumerate(seconds):
        soundfile.write(folder / f"{number}.flac", rng.uniform(-0.1, 0.1, int(duration * RATE)), RATE)
        text = "".join(rng.choice(letters, 1 + int(duration * CHARACTERS_PER_SECOND * rng.uniform(0.7, 1.3))))
        lines.append(json.dumps({"audio": f"{number}.flac", "text": text, "task": "asr", "language": "en"}))
    manifest = folder / "train.jsonl"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def quiet() -> None:
    """Leaves the output to the benchmark's result."""
    logging.getLogger("speechlmm_train").setLevel(logging.ERROR)


class Steps:
    """When each step of a training began, and which examples it takes."""

    def __init__(self) -> None:
        self.began: list[tuple[float, float]] = []
        self.examples: list[list[int]] = []

    @staticmethod
    def now() -> tuple[float, float]:
        """Wall-clock seconds, and this process's own, which other work on the machine hardly touches."""
        return time.perf_counter(), time.process_time()

    def add(self, began: tuple[float, float], examples: Sequence[int]) -> None:
        """Takes a step; its time is the one before its data were asked for."""
        self.began.append(began)
        self.examples.append([int(number) for number in examples])

    def rates(self, sizes: NDArray[Any], skip: int) -> tuple[float, float]:
        """Sizes trained on a second, from step ``skip`` to the beginning of the last one, all costs included.

        Returns:
            By the wall clock, and by the process's time, in which waiting for data costs nothing.
        """
        last = len(self.began) - 1
        assert last > skip, f"{last + 1} steps are too few to leave out {skip}"
        done = sum(float(sizes[numbers].sum()) for numbers in self.examples[skip:last])
        wall, own = (until - since for since, until in zip(self.began[skip], self.began[last], strict=True))
        return done / wall, done / own


def medians(found: Mapping[str, Sequence[tuple[float, float]]], ours: str, other: str) -> dict[str, Any]:
    """What a benchmark of two ways to train reports of their `rates`."""
    rates = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in found.items()}
    return {
        "audio_seconds_per_second": {way: round(values[0], 2) for way, values in rates.items()},
        f"{ours}_against_{other}": round(rates[ours][0] / rates[other][0], 3),
        f"{ours}_against_{other}_by_process_time": round(rates[ours][1] / rates[other][1], 3),
    }


@contextmanager
def clocked() -> Iterator[Steps]:
    """Notes the steps of the runs within; a note takes microseconds."""
    from speechlmm_train.batching.loader import ORIGIN
    from speechlmm_train.trainer.trainer import SpeechLMMTrainer

    steps = Steps()
    fetch = SpeechLMMTrainer.get_batch_samples

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = Steps.now()
        fetched = fetch(self, *args, **kwargs)
        steps.add(began, [number for batch in fetched[0] for number in batch[ORIGIN]["examples"]])
        return fetched

    SpeechLMMTrainer.get_batch_samples = noted
    try:
        yield steps
    finally:
        SpeechLMMTrainer.get_batch_samples = fetch
