"""Prints the demo's result and writes its files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from speechlmm_core.checkpoint.load import resolve_model_path
from speechlmm_train.demo.recipe import examples
from speechlmm_train.demo.report import CURVE, REPORT, DemoReport, save_learning_curve, save_report, table
from speechlmm_train.trainer.output_folder import METRICS

if TYPE_CHECKING:
    from speechlmm_train.evaluate.evaluate import Evaluation
    from speechlmm_train.run_report import RunReport


def show(
    console: Console,
    folder: Path,
    *,
    evaluations: Mapping[str, Evaluation],
    trained: RunReport,
    seed: int,
    seconds: float,
    peak_rss_bytes: int,
) -> DemoReport:
    """Writes `report.json` and `learning_curve.png`, and prints the table, three examples and what to try next.

    Args:
        console: Where to print.
        folder: The demo's folder.
        evaluations: By test set: `test`, `unseen`, `shuffled`.
        trained: What training reported.
        seed: The seed.
        seconds: Since the process started.
        peak_rss_bytes: Largest memory of all processes together.
    """
    scores = {name: evaluation.scores["asr"] for name, evaluation in evaluations.items()}
    report = DemoReport(
        wer=scores["test"]["wer"],
        cer=scores["test"]["cer"],
        wer_unseen_voice=scores["unseen"]["wer"],
        wer_shuffled_audio=scores["shuffled"]["wer"],
        steps=trained.steps,
        seconds=round(seconds, 1),
        peak_rss_bytes=peak_rss_bytes,
        num_parameters=_num_parameters(trained.model_path),
        seed=seed,
    )
    save_report(report, folder / REPORT)
    with (folder / METRICS).open(encoding="utf-8") as file:
        save_learning_curve([json.loads(line) for line in file], folder / CURVE)

    rows = Table(title="SpeechLMM demo", title_justify="left", show_header=False)
    for name, value in table(report):
        rows.add_row(name, value)
    console.print(rows)
    for reference, answer in examples(evaluations["test"].predictions):
        console.print(f"  said:  {reference}", highlight=False, markup=False)
        console.print(f"  heard: {answer}\n", highlight=False, markup=False)
    console.print(f"report: {folder / REPORT}   learning curve: {folder / CURVE}", soft_wrap=True)
    console.print("\nNext, try:", highlight=False)
    for command in next_commands(folder):
        console.print(f"  uv run {command}", highlight=False, markup=False, soft_wrap=True)
    return report


def next_commands(folder: Path) -> list[str]:
    """What to try with the demo's model, as shell commands to be put after ``uv run``."""
    with (folder / "corpus" / "test.jsonl").open(encoding="utf-8") as file:
        first = json.loads(next(file))
    model, clip = shlex.quote(str(folder)), shlex.quote(str(folder / "corpus" / first["audio"]))
    return [
        f"speechlmm-serve chat --model-path {model} --task asr --audio {clip}",
        f"speechlmm-serve infer --model-path {model} --task asr --audios-file-path "
        f"{shlex.quote(str(folder / 'corpus' / 'test.jsonl'))} --output transcripts.jsonl",
        f"tensorboard --logdir {model}",
        "speechlmm-train plan training_setting=demo model.text_decoder.tokenizer=bytes "
        "model.text_decoder.model.vocab_size=512 data.train=[train.jsonl] training.output_dir=runs/mine",
    ]


def _num_parameters(model_path: Path) -> int:
    import math

    from safetensors import safe_open

    total = 0
    for file in sorted(resolve_model_path(model_path).glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in list(tensors.keys()))
    return total
