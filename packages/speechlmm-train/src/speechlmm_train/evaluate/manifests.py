"""Evaluates a saved model on manifests: what `speechlmm-train evaluate` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.data.spec.entries import open_datasets
from speechlmm_core.errors import ConfigError
from speechlmm_core.inference.device import choose_device
from speechlmm_core.inference.options import GenerationOptions
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.evaluate.evaluate import evaluate
from speechlmm_train.folders import make_folder

REPORT = "report.json"


def evaluate_manifests(
    model_path: Path,
    manifests: Sequence[Path],
    *,
    output_dir: Path,
    max_new_tokens: int = 512,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    limit: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Scores a model on each manifest; writes ``<manifest>.predictions.jsonl`` and `report.json`.

    Raises:
        CheckpointError: The model cannot be loaded.
        DataError: A manifest is wrong.
        ConfigError: There is no such device, or the folder holds an earlier evaluation.
    """
    chosen = choose_device(device)
    names = [path.stem for path in manifests]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(f"two manifests are called {doubled[0]!r}; evaluate them one after the other")
    wanted = [output_dir / REPORT, *(_predictions(output_dir, name) for name in names)]
    if not overwrite and (there := [path for path in wanted if path.exists()]):
        raise ConfigError(f"{str(there[0])!r} is there already; replace it with --overwrite, or choose --output-dir")
    make_folder(output_dir, "--output-dir")
    sets = {path.stem: open_datasets([path], Path.cwd()) for path in manifests}
    processor = SpeechLMMProcessor.from_pretrained(model_path)
    model = SpeechLMM.from_pretrained(model_path, device=chosen)
    report: dict[str, Any] = {}
    for name, examples in sets.items():
        chosen_examples = [examples[i] for i in range(min(len(examples), limit or len(examples)))]
        done = evaluate(
            model,
            processor,
            chosen_examples,
            options=GenerationOptions(max_new_tokens=max_new_tokens),
            batch_size=batch_size,
            predictions_path=_predictions(output_dir, name),
        )
        report[name] = done.report()
    write_text(output_dir / REPORT, json.dumps(report, indent=2) + "\n")
    return report


def _predictions(folder: Path, name: str) -> Path:
    return folder / f"{name}.predictions.jsonl"
