"""What data and bookkeeping cost: a whole run against a bare loop of forward, backward and step on ready batches.

The bare loop does what training cannot do without: forward, backward, clipping, AdamW. It has two references:

- `full`: synthetic micro-batches of which each fills the token budget to the last position, with clips that are all
  alike: as much sound and text in each as the corpus has on average. The goal is stated for this one, as it tells also
  what the plan loses by batches that are not full, and by padding.
- `bare`: the micro-batches of the run's own plan, collated beforehand; what is lost on them is data and bookkeeping.

Rates are of real encoder frames, padding left out, on all sides. The run reads FLAC clips with one data worker, logs
its figures every ten steps and checks what it checks. It and `bare` begin with the same weights and compute the same
losses.

    python benchmarks/bare_step.py [--clips 96] [--steps 28] [--budget 768] [--repeats 2] [--model medium|demo]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import check_equal, report
from _training import LORA, MODELS, RATE, Steps, clocked, cpu_run, make_corpus, quiet
from batch_plan import LAWS
from numpy.typing import NDArray
from transformers import Trainer

from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.batching.loader import ORIGIN
from speechlmm_train.compose import validate
from speechlmm_train.process import prepare_process
from speechlmm_train.run import run
from speechlmm_train.trainer.arguments import training_arguments
from speechlmm_train.trainer.checks import freeze_for
from speechlmm_train.trainer.initial_model import build_model
from speechlmm_train.trainer.stage_data import open_stages

WARMUP = 4
"""Steps that are left out."""
LOGGING = 10
GRAD_NORM = 1.0
DISTINCT = 4
"""Full micro-batches that are made; they come in turns."""


def config(manifest: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The run."""
    lengths = {"max_steps": options.steps, "token_budget": options.budget, "num_workers": 1}
    adapters = LORA if options.lora else []
    return cpu_run(
        manifest, out, options, **lengths, lora_adapters=adapters, max_grad_norm=GRAD_NORM, logging_steps=LOGGING
    )


def bare(checked: Any, batches: list[dict[str, Any]], examples: list[Any], options: argparse.Namespace) -> Any:
    """The loop; returns the steps and the losses."""
    stage = checked.resolved_stages()[0]
    model = build_model(checked, None)
    freeze_for(model, stage)
    model.train()
    arguments = training_arguments(stage, output_dir=checked.training.output_dir, max_steps=options.steps, world_size=1)
    optimizer_class, numbers = Trainer.get_optimizer_cls_and_kwargs(arguments)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer_class(trained, weight_decay=0.0, **numbers)
    steps, losses = Steps(), []
    for batch, numbers_of in zip(batches, examples, strict=True):
        steps.add(Steps.now(), numbers_of)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bfloat16"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return steps, [float(loss) for loss in losses]


def full_batches(
    processor: SpeechLMMProcessor, positions: NDArray[np.int64], frames: NDArray[np.int64], budget: int
) -> tuple[list[dict[str, Any]], int, int]:
    """Micro-batches that fill the budget; returns them, the clips in each, and the frames of a clip.

    Args:
        processor: Makes them.
        positions: (N,) positions of each clip of the corpus.
        frames: (N,) frames of each.
        budget: Positions in a micro-batch.
    """
    rng = np.random.default_rng(1)
    clips = max(1, round(budget / float(positions.mean())))
    rate = processor.inputs["audio"].encoder.frame_rate
    seconds = float(frames.mean() / rate) * budget / clips / float(positions.mean())
    num_samples = int(seconds * RATE)

    def chat(characters: int) -> list[dict[str, Any]]:
        noise = rng.uniform(-0.1, 0.1, num_samples).astype(np.float32)
        sound = {"type": "audio", "array": noise, "sampling_rate": RATE}
        user = [sound, {"type": "text", "text": "Transcribe the speech."}]
        return [{"role": "user", "content": user}, {"role": "assistant", "content": "a" * characters}]

    shortest, own_frames = processor.sizes(chat(1), [num_samples])
    room = [budget // clips + (number < budget % clips) - shortest for number in range(clips)]
    batches: list[dict[str, Any]] = []
    for _ in range(DISTINCT):
        samples = [processor.sample(chat(1 + more), with_answer=True) for more in room]
        batches.append(processor.collate(samples, packed=True))
        held = sum(batches[-1]["segments"]["lengths"])
        check_equal({"positions that a full batch lacks": float(budget - held)}, 0)
    return batches, clips, own_frames


def logged(out: Path) -> dict[int, float]:
    """The losses that a run wrote, by step."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def main() -> None:
    """Prints throughputs and their ratio as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--budget", type=int, default=768, help="positions in a micro-batch")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", choices=tuple(MODELS), default="medium")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--lora", action="store_true", help="with low-rank adapters on both towers")
    parser.add_argument("--threads", type=int, default=1, help="of training; the data worker has one of its own")
    parser.add_argument("--law", choices=tuple(LAWS), default="librispeech_like")
    options = parser.parse_args()
    prepare_process()  # for both ways alike
    torch.set_num_threads(options.threads)
    quiet()
    seconds = LAWS[options.law](options.clips, np.random.default_rng(0))
    found: dict[str, list[tuple[float, float]]] = {"run": [], "bare": [], "full": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_corpus(folder, seconds)
        checked = validate(config(manifest, folder / "bare", options))
        processor = SpeechLMMProcessor.from_config(checked.model)
        (stage,) = open_stages(checked, processor, base=folder, world_size=1)
        batches = list(itertools.islice(stage.batches(0, rank=0), options.steps))
        examples = [batch.pop(ORIGIN)["examples"] for batch in batches]
        frames = stage.plan.frames
        made, clips, own_frames = full_batches(processor, stage.plan.positions, frames, options.budget)
        full = [made[step % DISTINCT] for step in range(options.steps)]
        fill = stage.plan.fill()
        for repeat in range(options.repeats):
            out = folder / f"run-{repeat}"
            with clocked() as noted:
                run(validate(config(manifest, out, options)), progress=False)
            found["run"].append(noted.rates(frames, WARMUP))
            check_equal({"order of examples": float(noted.examples != [list(map(int, one)) for one in examples])}, 0)
            noted, losses = bare(checked, batches, examples, options)
            found["bare"].append(noted.rates(frames, WARMUP))
            mean = statistics.mean(losses[:LOGGING])
            check_equal({"loss": abs(logged(out)[LOGGING] / mean - 1)}, 1e-3)
            noted, _ = bare(checked, full, [[0] * clips] * options.steps, options)
            found["full"].append(noted.rates(np.array([own_frames]), WARMUP))
    settings = {name: getattr(options, name) for name in ("clips", "steps", "budget", "model", "dtype", "lora", "law")}
    rates = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in found.items()}
    figures: dict[str, Any] = {
        "plan_fill": round(fill, 3),
        "frames_per_second": {way: round(values[0], 1) for way, values in rates.items()},
    }
    for other in ("full", "bare"):
        figures[f"run_against_{other}"] = round(rates["run"][0] / rates[other][0], 3)
        figures[f"run_against_{other}_by_process_time"] = round(rates["run"][1] / rates[other][1], 3)
    report("bare_step", settings | figures)


if __name__ == "__main__":
    main()
