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
from tiny_runs import tiny_decoder, tiny_encoder, tiny_model

from speechlmm_core.errors import ConfigError
from speechlmm_train.compose import validate
from speechlmm_train.run import run

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

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

from speechlmm_core.checkpoint import shards
from speechlmm_core.errors import SpeechLMMError
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


def no_room(*_, **__):
    raise OSError(28, "No space left on device")


def go(plain, log, stop=None, resume=False, full=False):
    now.update(stop=stop, log=log)
    save = shards.save_file
    if full:
        shards.save_file = no_room
    try:
        run(validate(plain), plain=plain, resume=resume, progress=False)
    except PreemptedError as exc:
        assert exc.exit_code == 75
        return "stopped"
    except SpeechLMMError as exc:
        assert full, exc
        assert "No space left on device; earlier checkpoints are still valid" in str(exc), exc
        return "full"
    finally:
        shards.save_file = save
    return "done"
'''

SCRIPT = (
    HOOK
    + """
if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        job["log"] += os.environ["RANK"]
        print(go(**job), flush=True)
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
    decoder = tiny_decoder(width=24, layers=2, attention_dropout=dropout)
    return tiny_model(tiny_encoder(width=16, dropout=dropout), decoder, ctc=0.3)


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
            "preflight": False,
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

    def part(parallel, stop, *, full=False):
        logs.append(root / f"log-{stop}-{full}-")
        settings = plain(corpus, out, parallel=parallel)
        return {"plain": settings, "log": str(logs[-1]), "stop": stop, "resume": True, "full": full}

    def on_two(*parts):
        file = root / f"jobs-{len(logs)}.json"
        file.write_text(json.dumps(parts))
        done = run_script(SCRIPT, file)
        assert done.code == 0, done.err
        return [word for word in done.out.split() if word in ("stopped", "done", "full")]  # DeepSpeed prints, too

    told = on_two(part("ddp", 4), part("fsdp2", 6))
    told.append(here(**part("auto", 8)))
    told += on_two(part("fsdp2", 9), part("zero2", 11), part("zero3", 13), part("zero3", None, full=True))
    told.append(here(**part("auto", None)))
    return out, [file for log in logs for file in sorted(log.parent.glob(f"{log.name}*"))], told


def test_every_way_to_spread_goes_on_from_every_other(handed_on, uninterrupted):
    out, logs, told = handed_on
    assert told == [*["stopped"] * 6, "full", "done"]
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
    for step in (3, 5, 7, 9, 11, 13):  # ddp, fsdp2, one process, fsdp2, zero2, zero3
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


def part_of(whole, folder, *steps):
    """A copy of a run as it was when its last checkpoint was one of some steps."""
    folder.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy2(whole / name, folder / name)
    for step in steps:
        shutil.copytree(whole / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    return folder


def test_a_damaged_checkpoint_is_named_and_passed_over(corpus, here, tmp_path, uninterrupted, caplog):
    out = part_of(uninterrupted[0], tmp_path / "out", 9, 11)
    damaged = out / "checkpoint-11" / "optimizer" / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert here(plain(corpus, out), log=str(tmp_path / "log"), resume=True) == "done"
    assert "checkpoint-11 is damaged and is passed over: optimizer/state.safetensors has" in caplog.text
    assert min(step for step, _ in batches(tmp_path / "log")) == 9
    assert_equal(out / "model", uninterrupted[0] / "model")
    assert_equal(out / "checkpoint-11", uninterrupted[0] / "checkpoint-11")  # written anew in its place


def test_a_full_disk_leaves_what_was_there(corpus, here, tmp_path, uninterrupted):
    out = part_of(uninterrupted[0], tmp_path / "out", 9)
    before = weights(out)
    assert here(plain(corpus, out), log=str(tmp_path / "log"), resume=True, full=True) == "full"
    assert sorted(path.name for path in out.glob("*checkpoint*")) == ["checkpoint-9"]
    assert not list(out.glob(".*"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(out).items())
    assert here(plain(corpus, out), log=str(tmp_path / "log"), resume=True) == "done"
    assert_equal(out / "model", uninterrupted[0] / "model")
    assert losses(out) == losses(uninterrupted[0])


@pytest.fixture
def fewer(corpus, tmp_path):
    """The corpus with a row less, and one with a row in another's place."""
    rows = (corpus / "st.jsonl").read_text().splitlines()
    for name, own in {
        "fewer": rows[:-1],
        "swapped": [rows[1], rows[0], *rows[2:]],
        "other": [rows[0].replace('"ab ', '"ba '), *rows[1:]],
    }.items():
        lines = [json.dumps({**json.loads(row), "audio": str(corpus / json.loads(row)["audio"])}) for row in own]
        (tmp_path / name).mkdir()
        (tmp_path / name / "st.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_other_batches_are_named_and_refused(corpus, here, fewer, tmp_path, uninterrupted, caplog):
    out = part_of(uninterrupted[0], tmp_path / "out", 11)
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    asr = str(corpus / "asr.jsonl")
    changed = [
        ({"token_budget": 300}, {}, "token_budget 400 → 300"),
        ({"micro_batches_per_step": 4}, {}, "micro_batches_per_step 2 → 4"),
        ({"packed": False}, {}, "packed True → False"),
        ({}, {"mixing": "random"}, "mixing alternating → random"),
        ({}, {"task_weights": {"asr": 1, "st": 1}}, r"shares \[0.666667, 0.333333\] → \[0.5, 0.5\]"),
        ({}, {"train": [asr, str(fewer / "other" / "st.jsonl")]}, "which rows the datasets hold"),
        ({}, {"train": [asr, str(fewer / "fewer" / "st.jsonl")]}, "examples 14 → 13"),
        ({}, {"train": [asr, str(fewer / "swapped" / "st.jsonl")]}, "the lengths of the examples"),
    ]
    for training, data, message in changed:
        config = plain(corpus, out, **training)
        config["data"] |= data
        with pytest.raises(ConfigError, match=rf"'two' would not be those .*{message}.*training.resume_changed=true"):
            run_plain(config)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == kept
    config = plain(corpus, out, token_budget=300, resume_changed=True)
    assert here(config, log=str(tmp_path / "log"), resume=True) == "done"
    assert "goes on from step 8 of another sequence of batches (token_budget 400 → 300" in caplog.text


def run_plain(config):
    return run(validate(config), plain=config, resume=True, progress=False)
