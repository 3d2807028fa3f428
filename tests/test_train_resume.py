"""Stopping and going on, on other processes and spread in other ways: the same batches, and the same weights."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16_000
STEPS = 14
AUGMENT = [{"type": "speed", "factors": [0.9, 1.1]}, {"type": "gain"}]
LORA = [{"name": "low", "target_module": "text_decoder.model", "r": 2, "lora_dropout": 0.2}]
STAGES = [
    {"name": "one", "max_steps": 3, "freeze_modules": ["audio_encoder"], "learning_rate": 1e-3},
    {"name": "two", "max_steps": STEPS - 3},
]

HOOK = '''
"""Runs a configuration and notes what every step is made of."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from speechlmm_train.compose import validate
from speechlmm_train.preempted import PreemptedError
from speechlmm_train.run import run
from speechlmm_train.trainer.trainer import SpeechLMMTrainer

fetch = SpeechLMMTrainer.get_batch_samples
now = {}


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from tensors(value[key])


def digest(batch):
    """What a micro-batch holds after prompts, augmentation and packing."""
    found = hashlib.sha256()
    for key in ("input_ids", "labels", "media"):
        for tensor in tensors(batch.get(key)):
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def noted(trainer, epoch_iterator, num_batches, device):
    step, rank, world_size = trainer.total_step, trainer.args.process_index, trainer.args.world_size
    if now["stop"] is not None and step == now["stop"] - 1 and rank == world_size - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    found = fetch(trainer, epoch_iterator, num_batches, device)
    with Path(now["log"]).open("a") as file:
        for number, batch in enumerate(found[0]):
            row = [step, rank + number * world_size, batch["origin"]["examples"].tolist(), digest(batch)]
            file.write(json.dumps(row) + "\\n")
    return found


SpeechLMMTrainer.get_batch_samples = noted


def go(plain, log, stop=None, resume=False):
    now.update(stop=stop, log=log)
    try:
        run(validate(plain), plain=plain, resume=resume, progress=False)
    except PreemptedError as exc:
        assert exc.exit_code == 75
        return "stopped"
    return "done"
'''

SCRIPT = (
    HOOK
    + """
if __name__ == "__main__":
    from accelerate.state import AcceleratorState, PartialState

    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        job["log"] += os.environ["RANK"]
        print(go(**job), flush=True)
        AcceleratorState._reset_state(reset_partial_state=True)
"""
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """What runs a configuration in this process."""
    from speechlmm_train.trainer.trainer import SpeechLMMTrainer

    file = tmp_path_factory.mktemp("hook") / "resume_hook.py"
    file.write_text(HOOK)
    spec = importlib.util.spec_from_file_location("resume_hook", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.go
    SpeechLMMTrainer.get_batch_samples = module.fetch


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Clips of noise with two tasks, of lengths that differ."""
    root = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    rows = {"asr": [], "st": []}
    for i in range(14):
        samples = 0.1 * generator.standard_normal(int(RATE * generator.uniform(0.2, 0.8)))
        soundfile.write(root / f"{i}.flac", samples, RATE)
        task = ("asr", "st")[i % 2]
        row = {"audio": f"{i}.flac", "text": "ab " * (1 + i % 4), "task": task, "language": "en"}
        rows[task].append({**row, **({"target_language": "de"} if task == "st" else {})})
    for task, own in rows.items():
        (root / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    return root


def model(dropout=0.2):
    sizes = {"num_mel_bins": 16, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
    encoder = {**sizes, "encoder_ffn_dim": 30, "max_source_positions": 200, "dropout": dropout}
    decoder = {"model_type": "llama", "hidden_size": 24, "intermediate_size": 50, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    return {
        "audio_encoder": {"type": "whisper_unrestricted", "model": encoder},
        "audio_adapter": {"type": "mlp", "stack": 2, "num_layers": 1},
        "text_decoder": {
            "type": "causal_lm",
            "tokenizer": "bytes",
            "chat_template": "chatml",
            "model": {**decoder, **heads, "attention_dropout": dropout},
        },
        "objectives": {"ctc": {"type": "ctc", "weight": 0.3}},
    }


def plain(corpus, out, *, stages=STAGES, **training):
    return {
        "model": model(),
        "data": {
            "train": [str(corpus / "asr.jsonl"), str(corpus / "st.jsonl")],
            "eval": [str(corpus / "asr.jsonl")],
            "augment": AUGMENT,
            "mixing": "alternating",
            "task_weights": {"asr": 2, "st": 1},
        },
        "training": {
            "output_dir": str(out),
            "learning_rate": 2e-3,
            "weight_decay": 0.01,
            "adam_epsilon": 1e-4,  # so that rounding is not blown up to whole steps where gradients are tiny
            "warmup_steps": 2,
            "token_budget": 400,
            "micro_batches_per_step": 2,
            "logging_steps": 1,
            "save_steps": 2,
            "save_total_limit": None,
            "lora_adapters": LORA,
            "lr_groups": {"audio_adapter": 1e-3},
            "report_to": [],
            **training,
        },
        "stages": stages,
    }


def losses(out):
    rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def batches(*logs):
    """What each step is made of; a step that was done twice must have been the same twice."""
    found = {}
    for log in logs:
        for line in Path(log).read_text().splitlines():
            step, number, *what = json.loads(line)
            assert found.setdefault((step, number), what) == what, (step, number)
    return found


def weights(folder):
    files = sorted(Path(folder).rglob("*.safetensors"))
    return {f"{file.parent.name}/{key}": value for file in files for key, value in load_file(file).items()}


def assert_equal(left, right):
    left, right = weights(left), weights(right)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.fixture(scope="module")
def uninterrupted(corpus, here, tmp_path_factory):
    """A run of one process, from beginning to end."""
    out = tmp_path_factory.mktemp("whole") / "out"
    log = out.parent / "log"
    assert here(plain(corpus, out), log=str(log)) == "done"
    return out, log


def test_two_stops_change_no_bit(corpus, here, tmp_path, uninterrupted):
    """One process, with other numbers of data workers; the stops lie in both stages."""
    out, log = tmp_path / "out", tmp_path / "log"
    assert here(plain(corpus, out), log=str(log), stop=2) == "stopped"
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-2"]
    assert not (out / "model").exists()
    assert here(plain(corpus, out, num_workers=2), log=str(log), stop=7, resume=True) == "stopped"
    assert here(plain(corpus, out, num_workers=1), log=str(log), resume=True) == "done"
    assert batches(log) == batches(uninterrupted[1])
    assert len(batches(log)) == 2 * STEPS
    assert losses(out) == losses(uninterrupted[0])
    assert_equal(out / "model", uninterrupted[0] / "model")
    last = f"checkpoint-{STEPS}"
    assert_equal(out / last / "optimizer", uninterrupted[0] / last / "optimizer")
    states = [
        json.loads((folder / last / "optimizer" / "state.json").read_text()) for folder in (out, uninterrupted[0])
    ]
    assert states[0] == states[1]


@pytest.fixture(scope="module")
def handed_on(corpus, here, run_script, tmp_path_factory, uninterrupted):
    """A run that goes on in another way at every other checkpoint: on one and two processes, spread in every way."""
    root = tmp_path_factory.mktemp("handed")
    out, logs = root / "out", []
    out.mkdir()
    for name in ("config.yaml", "checkpoint-2", "metrics.jsonl"):
        source = uninterrupted[0] / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, out / name)

    def part(parallel, stop):
        logs.append(root / f"log-{stop}-")
        settings = plain(corpus, out, parallel=parallel)
        return {"plain": settings, "log": str(logs[-1]), "stop": stop, "resume": True}

    def on_two(*parts):
        file = root / f"jobs-{parts[0]['stop']}.json"
        file.write_text(json.dumps(parts))
        done = run_script(SCRIPT, file)
        assert done.code == 0, done.err
        return done.out.split()

    told = on_two(part("ddp", 4), part("fsdp2", 6))
    told.append(here(**part("auto", 8)))
    told += on_two(part("fsdp2", 9), part("zero2", 10), part("zero3", 12))
    told.append(here(**part("auto", None)))
    return out, [file for log in logs for file in sorted(log.parent.glob(f"{log.name}*"))], told


def test_every_way_to_spread_goes_on_from_every_other(handed_on, uninterrupted):
    out, logs, told = handed_on
    assert told == ["stopped"] * 6 + ["done"]
    expected = {place: what for place, what in batches(uninterrupted[1]).items() if place[0] >= 2}
    assert batches(*logs) == expected
    found, wanted = losses(out), losses(uninterrupted[0])
    assert found.keys() == wanted.keys()
    for step, loss in wanted.items():
        assert found[step] == pytest.approx(loss, rel=1e-4), step
    left, right = weights(out / "model"), weights(uninterrupted[0] / "model")
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        torch.testing.assert_close(left[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


def test_every_way_writes_the_same_files(handed_on, uninterrupted):
    out, _, _ = handed_on
    for step in (4, 6, 8, 10, 12):
        ours, theirs = (folder / f"checkpoint-{step}" for folder in (out, uninterrupted[0]))
        names = [{path.relative_to(one).as_posix() for path in one.rglob("*")} for one in (ours, theirs)]
        assert names[0] == names[1]
        assert not [name for name in names[0] if name.endswith((".pt", ".bin", ".pkl"))]
        left, right = weights(ours / "optimizer"), weights(theirs / "optimizer")
        assert left.keys() == right.keys()
        for name, tensor in right.items():
            assert left[name].shape == tensor.shape
            torch.testing.assert_close(left[name], tensor, atol=1e-4, rtol=1e-2, msg=f"{step} {name}")
        states = [json.loads((one / "optimizer" / "state.json").read_text()) for one in (ours, theirs)]
        assert states[0]["numbers"] == states[1]["numbers"]
        assert states[0]["scheduler"] == states[1]["scheduler"]
        for one, other in zip(*(state["groups"] for state in states), strict=True):
            assert sorted(one["params"]) == sorted(other["params"])
            assert one["lr"] == pytest.approx(other["lr"])
            assert (one["weight_decay"], one["betas"]) == (other["weight_decay"], other["betas"])
