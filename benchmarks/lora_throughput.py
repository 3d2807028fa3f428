"""Training with LoRA from files on disk, in seconds of audio a second: this project's run against a plain HF Trainer.

Encoder 4 x 256, text decoder 8 x 512, LoRA on both, the adapter between them trained whole; FLAC clips of noise with
text at the rate of speech. Everything counts: reading, features, collating in one data worker, the step, the optimiser,
figures. The first steps, in which workers and caches start, are left out.

- `run`: `speechlmm-train run`: packed rows, batches from the batch plan, with a token budget of `--batch` mean clips.
- `padded`: what a user of transformers' `Trainer` does with the same model, the same LoRA and the same worker: batches
  of `--batch` clips in random order, padded to their longest.

Both begin with the same weights; the summed token loss over the clips of one batch, packed and padded, is compared
first.

    python benchmarks/lora_throughput.py [--clips 64] [--batch 16] [--repeats 2] [--dtype bfloat16|float32]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import check_equal, report
from _training import LORA, MODELS, Steps, clocked, cpu_run, make_corpus, medians, quiet
from batch_plan import LAWS
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.compose import validate
from speechlmm_train.process import prepare_process
from speechlmm_train.run import run
from speechlmm_train.trainer.checks import freeze_for
from speechlmm_train.trainer.initial_model import build_model
from speechlmm_train.trainer.stage_data import open_stages

WARMUP = 2
"""Steps that are left out."""


def config(manifest: Path, out: Path, options: argparse.Namespace, *, budget: int, steps: int) -> dict[str, Any]:
    """The run."""
    lengths = {"max_steps": steps, "token_budget": budget, "num_workers": 1}
    return cpu_run(manifest, out, options, **lengths, lora_adapters=LORA)


class Clips(Dataset[Any]):
    """Processed samples with their numbers; a data worker makes them."""

    def __init__(self, examples: Any, processor: SpeechLMMProcessor) -> None:
        self.examples, self.processor = examples, processor

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> Any:
        return number, self.processor.sample(self.examples.chat(number, draw=number), with_answer=True)


class Plain(nn.Module):
    """The model as `Trainer` wants it: a loss from a batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *, examples: Any = None, **batch: Any) -> dict[str, Any]:
        """The mean token loss of a batch."""
        return {"loss": self.model(**batch).loss}


class PlainTrainer(Trainer):
    """Transformers' trainer; all that is added is a note of when steps begin."""

    steps: Steps

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetches a step's batch."""
        began = Steps.now()
        fetched = super().get_batch_samples(*args, **kwargs)
        self.steps.add(began, [number for batch in fetched[0] for number in batch["examples"].tolist()])
        return fetched


def train_padded(model: Any, clips: Clips, folder: str, options: argparse.Namespace, steps: int) -> Steps:
    """Trains as a user of `Trainer` does."""

    def collate(samples: list[Any]) -> dict[str, Any]:
        batch = clips.processor.collate([sample for _, sample in samples], packed=False)
        return {**batch, "examples": torch.tensor([number for number, _ in samples])}

    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=options.batch,
        bf16=options.dtype == "bfloat16",
        use_cpu=True,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        dataloader_num_workers=1,
        remove_unused_columns=False,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
    )
    trainer = PlainTrainer(model=Plain(model), args=arguments, train_dataset=clips, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    trainer.steps = Steps()
    trainer.train()
    return trainer.steps


def loss_difference(model: Any, clips: Clips, count: int) -> float:
    """The relative difference of the summed token losses, packed and padded."""
    samples = [clips[number][1] for number in range(count)]
    model.eval()
    with torch.no_grad():
        packed, padded = (
            float(model(**clips.processor.collate(samples, packed=way)).losses["lm"].sum) for way in (True, False)
        )
    model.train()
    return abs(packed / padded - 1)


def measure(law: str, options: argparse.Namespace) -> dict[str, Any]:
    """Throughput of both ways on the clips of one law."""
    seconds = LAWS[law](options.clips, np.random.default_rng(0))
    found: dict[str, list[tuple[float, float]]] = {"run": [], "padded": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_corpus(folder, seconds)
        processor = SpeechLMMProcessor.from_config(validate(config(manifest, folder, options, budget=1, steps=1)).model)
        first = validate(config(manifest, folder / "sizes", options, budget=1 << 20, steps=1))
        (stage,) = open_stages(first, processor, base=folder, world_size=1)
        budget = max(int(options.batch * stage.plan.positions.mean()), int(stage.plan.positions.max()))
        clips = Clips(stage.examples, processor)
        steps = -(-options.clips // options.batch) + WARMUP + 1
        difference = None
        for repeat in range(options.repeats):
            checked = validate(config(manifest, folder / f"run-{repeat}", options, budget=budget, steps=steps))
            with clocked() as noted:
                run(checked, progress=False)
            found["run"].append(noted.rates(seconds, WARMUP))
            model = build_model(checked, None)
            freeze_for(model, checked.resolved_stages()[0])
            if difference is None:
                difference = loss_difference(model, clips, options.batch)
                check_equal({"summed token loss, packed and padded": difference}, 1e-5)
            noted = train_padded(model, clips, str(folder / f"padded-{repeat}"), options, steps)
            found["padded"].append(noted.rates(seconds, WARMUP))
    return {
        "audio_seconds": round(float(seconds.sum()), 1),
        "loss_relative_difference": difference,
        **medians(found, "run", "padded"),
    }


def main() -> None:
    """Prints throughputs and ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="clips in a batch, or on average")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", choices=tuple(MODELS), default="medium")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1, help="of training; the data worker has one of its own")
    parser.add_argument("--laws", nargs="+", choices=tuple(LAWS), default=list(LAWS))
    options = parser.parse_args()
    prepare_process()  # for both ways alike
    torch.set_num_threads(options.threads)
    quiet()
    settings = {name: getattr(options, name) for name in ("clips", "batch", "model", "dtype", "threads")}
    report("lora_throughput", settings | {law: measure(law, options) for law in options.laws})


if __name__ == "__main__":
    main()
