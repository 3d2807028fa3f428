"""Predicted memory against what torch's allocator counts while a run trains, in a process of its own."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.compose import validate
from speechlmm_train.preflight.memory import predict_memory
from speechlmm_train.preflight.table import largest_batches
from speechlmm_train.preflight.tracker import StorageTracker
from speechlmm_train.trainer.stage_data import open_stages

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16_000

# The profiler writes down each allocation of torch's CPU allocator, with the sum of all that are alive.
MEASURE = """
import gc, json, sys, torch
torch.set_num_threads(1)
from torch.profiler import ProfilerActivity, profile
from speechlmm_train.compose import validate
from speechlmm_train.run import run
from speechlmm_train.trainer.trainer import SpeechLMMTrainer
results = []
for line in open(sys.argv[1]):
    config = json.loads(line)
    gc.collect()  # what the run before has left would count as given back
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run(validate(config), plain=config, progress=False)
    prof.export_chrome_trace(sys.argv[2])
    events = [one for one in json.load(open(sys.argv[2]))["traceEvents"] if one.get("name") == "[memory]"]
    events.sort(key=lambda one: one["ts"])
    total = peak = 0
    for one in events:
        total += one["args"]["Bytes"]
        peak = max(peak, total)
    results.append(peak)
print(json.dumps(results))
"""

TINY, SMALL = 32, 512


def model(width, layers):
    encoder = {"num_mel_bins": 16, "d_model": width, "encoder_layers": layers, "encoder_attention_heads": 4}
    decoder = {"model_type": "llama", "hidden_size": width, "intermediate_size": 4 * width}
    heads = {"num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {
        "audio_encoder": {
            "type": "whisper_unrestricted",
            "model": {**encoder, "encoder_ffn_dim": 4 * width, "max_source_positions": 400},
        },
        "audio_adapter": {"type": "mlp", "stack": 2, "num_layers": 1},
        "text_decoder": {
            "type": "causal_lm",
            "tokenizer": "bytes",
            "chat_template": "chatml",
            "model": {**decoder, **heads, "max_position_embeddings": 512},
        },
        "objectives": {"ctc": {"type": "ctc"}},
    }


LORA = [{"name": "own", "target_module": "text_decoder.model", "r": 8}]
CASES = {
    "full packed": (TINY, 1, {}),
    "full padded, two micro-batches": (TINY, 1, {"packed": False, "micro_batches_per_step": 2}),
    "frozen, by number": (TINY, 2, {"freeze_modules": ["audio_encoder"], "token_budget": None, "size": 4}),
    "small": (SMALL, 4, {}),
    "small, checkpointing": (SMALL, 4, {"gradient_checkpointing": True}),
    "small, LoRA and a frozen encoder": (
        *(SMALL, 4),
        {"lora_adapters": LORA, "freeze_modules": ["audio_encoder"], "gradient_checkpointing": True, "packed": False},
    ),
}


def plain(root, case, number):
    width, layers, training = CASES[case]
    training = dict(training)
    if size := training.pop("size", None):
        training["per_device_train_batch_size"] = size
    settings = {"output_dir": str(root / f"out-{number}"), "max_steps": 2, "token_budget": 400, "report_to": []}
    return {
        "model": model(width, layers),
        "data": {"train": [str(root / "train.jsonl")]},
        # Saving and checks are other things than a step.
        "training": {**settings, "save_steps": None, "preflight": False, **training},
    }


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Peaks of whole runs, and their configurations."""
    root = tmp_path_factory.mktemp("memory")
    generator = np.random.default_rng(0)
    rows = []
    for i in range(8):
        samples = generator.normal(0, 0.1, int(RATE * generator.uniform(0.6, 4.5))).astype("float32")
        soundfile.write(root / f"{i}.wav", samples, RATE)
        rows.append({"audio": f"{i}.wav", "text": "one two three"[: 3 + i], "task": "asr"})
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    configs = {case: plain(root, case, number) for number, case in enumerate(CASES)}
    (root / "runs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in configs.values()))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, root / "runs.jsonl", root / "trace.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout.splitlines()[-1])
    return {case: (configs[case], peak) for case, peak in zip(CASES, peaks, strict=True)}


@pytest.mark.parametrize("case", CASES)
def test_the_prediction_is_within_15_percent_of_a_run(measured, tmp_path, case):
    plain_config, peak = measured[case]
    config = validate(plain_config)
    processor = SpeechLMMProcessor.from_config(config.model)
    (data,) = open_stages(config, processor, base=tmp_path, world_size=1)
    batches = largest_batches(config, data.settings, data)
    estimate = predict_memory(config, data.settings, world_size=1, batches=batches)
    print(case, estimate, estimate.total, peak, estimate.total / peak)
    assert estimate.total == pytest.approx(peak, rel=0.15)


def test_the_tracker_counts_live_storages():
    """Against sums by hand: 4 bytes for each of 1000 numbers; a view and an in-place operation take nothing."""
    first = torch.zeros(1000)
    with StorageTracker([first]) as tracker:
        second = first + 1
        view = second[:10].view(5, 2)
        second.mul_(2)
        assert (tracker.current, tracker.peak) == (4000, 4000)
        third = second * 3
        assert tracker.current == 8000
        del second
        assert tracker.current == 8000  # the view keeps it
        del view
        assert tracker.current == 4000
        del third
        assert (tracker.current, tracker.peak) == (0, 8000)
