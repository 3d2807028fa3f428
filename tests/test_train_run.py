"""Whole training runs with tiny components: learning, resuming, accumulation, normalisation."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny_runs import rows as metrics
from tiny_runs import tiny_decoder, tiny_encoder, tiny_model

from speechlmm_core.errors import CheckpointError, ConfigError, DataError
from speechlmm_train.compose import validate
from speechlmm_train.launch.closing import closing_lines
from speechlmm_train.run import build_model, run
from speechlmm_train.trainer.output_folder import OutputFolder

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ("red", "green", "blue", "one", "two", "three")
RATE = 16_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Tones that stand for words, as FLAC with a manifest, and sentences without audio."""
    root = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    lines, texts, chats = [], [], []
    for i in range(16):
        words = generator.integers(len(WORDS), size=int(generator.integers(1, 4)))
        tones = [np.sin(2 * np.pi * (300 + 400 * word) * np.arange(RATE // 4) / RATE) for word in words]
        soundfile.write(root / f"{i}.flac", (0.1 * np.concatenate(tones)).astype("float32"), RATE)
        text = " ".join(WORDS[word] for word in words)
        lines.append({"audio": f"{i}.flac", "text": text, "task": "asr", "language": "en"})
        audio = {"type": "audio", "path": f"{i}.flac", "transcript": text}
        answer = {"role": "assistant", "content": text}
        texts.append({"messages": [{"role": "user", "content": "Say"}, answer]})
        chats.append({"messages": [{"role": "user", "content": [audio]}, answer]})
    for name, rows in {"speech": lines, "text": texts, "chat": chats}.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def model(dropout=0.0):
    return tiny_model(tiny_encoder(dropout=dropout), tiny_decoder(attention_dropout=dropout), ctc=[[0, 1], [1, 0.5]])


def plain(corpus, out, *, stages=None, dropout=0.0, manifest="speech.jsonl", **training):
    return {
        "model": model(dropout),
        "data": {"train": [str(corpus / manifest)], "eval": [str(corpus / "speech.jsonl")]},
        "training": {
            "output_dir": str(out),
            "learning_rate": 3e-3,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_steps": 2,
            "report_to": [],
            **training,
        },
        "stages": stages or [],
    }


def go(*args, resume=False, overwrite=False, **kwargs):
    config = plain(*args, **kwargs)
    return run(validate(config), plain=config, resume=resume, overwrite=overwrite, progress=False)


def weights(out):
    return load_file(Path(out) / "model" / "model.safetensors")


def assert_same_weights(left, right):
    left, right = weights(left), weights(right)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_few_steps_have_figures_too(corpus, tmp_path):
    report = go(corpus, tmp_path / "out", max_steps=2, logging_steps=20)
    (last,) = metrics(tmp_path / "out")
    assert last["step"] == 2
    assert report.figures["train/lm"] == last["train/lm"] > 0


def test_the_loss_goes_down_and_every_loss_has_its_name(corpus, tmp_path):
    report = go(corpus, tmp_path / "out", max_steps=30, eval_steps=30, eval_samples=3, eval_max_new_tokens=4)
    rows = metrics(tmp_path / "out")
    losses = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in losses] == list(range(1, 31))
    assert losses[-1]["train/lm"] < 0.75 * losses[0]["train/lm"]
    for row in losses:
        progress = (row["step"] - 1) / 30
        expected = row["train/lm"] + (1 - 0.5 * progress) * row["train/ctc"]
        assert row["train/loss"] == pytest.approx(expected, rel=1e-5)
        assert row["train/audio_seconds_per_second"] > 0
        assert row["train/tokens_per_second"] > 0
    (scores,) = [row for row in rows if "eval/asr_wer" in row]
    assert scores["eval/asr_wer_words"] > 0
    assert report.steps == 30
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == [
        "checkpoint-26",
        "checkpoint-28",
        "checkpoint-30",
    ]


def test_the_trained_model_loads(corpus, tmp_path):
    from speechlmm_core.model.speechlmm import SpeechLMM

    report = go(corpus, tmp_path / "out", max_steps=1, save_steps=None)
    loaded = SpeechLMM.from_pretrained(report.model_path).state_dict()
    for name, tensor in weights(tmp_path / "out").items():
        assert torch.equal(tensor, loaded[name])
    assert not list((tmp_path / "out").glob("checkpoint-*"))


STAGES = [
    {"name": "text", "max_steps": 5, "trainable_modules": ["text_decoder"], "data": None, "objectives": {"ctc": 0}},
    {"name": "speech", "max_steps": 6, "learning_rate": 1e-3, "micro_batches_per_step": 2},
]


def staged(corpus, out):
    first = {**STAGES[0], "data": {"train": [str(corpus / "text.jsonl")]}}
    return plain(corpus, out, stages=[first, STAGES[1]], dropout=0.2, save_steps=3, save_total_limit=None)


def spawn(config, file):
    """Runs a configuration in a process of its own, in which every step takes a little longer."""
    file.write_text(json.dumps(config))
    code = f"""
import json, time, torch
torch.set_num_threads(1)
from speechlmm_train.compose import validate
from speechlmm_train.run import run
from speechlmm_train.trainer.callbacks import Reporter
step = Reporter.step
Reporter.step = lambda self, stage: (time.sleep(0.3), step(self, stage))
config = json.loads(open({str(file)!r}).read())
run(validate(config), plain=config, progress=False)
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def kill_after(process, folder, checkpoint):
    """Kills a process the hard way, as soon as it has gone beyond a checkpoint."""
    number = int(checkpoint.rpartition("-")[2])
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
        if (folder / checkpoint).exists() and len(lines) > number:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    config = staged(corpus, out)
    run(validate(config), plain=config, progress=False)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["checkpoint-3", "checkpoint-5", "checkpoint-8"])
def test_a_killed_run_goes_on_to_the_same_weights(corpus, tmp_path, uninterrupted, checkpoint):
    """Within the first stage, at the boundary, and within the second; dropout is on, and batches must be the same."""
    out = tmp_path / "out"
    config = staged(corpus, out)
    kill_after(spawn(config, tmp_path / "config.json"), out, checkpoint)
    assert not (out / "model").exists()
    torn = out / "checkpoint-99"  # as if the system had died before anything reached the disk
    torn.mkdir()
    (torn / "config.json").write_text("{")
    (out / ".checkpoint-9.01234567.tmp").mkdir()
    last = OutputFolder(out).last_checkpoint()
    assert last is not None
    report = run(validate(config), plain=config, resume=True, progress=False)
    assert report.steps_before == last.progress.total_step
    assert_same_weights(out, uninterrupted)
    assert not (out / ".checkpoint-9.01234567.tmp").exists()
    losses = [[(row["step"], row["train/loss"]) for row in metrics(folder)] for folder in (out, uninterrupted)]
    assert losses[0] == losses[1]


def test_stages_train_what_they_name(uninterrupted, corpus):
    config = validate(staged(corpus, uninterrupted))
    initial = build_model(config, None).state_dict()
    boundary = load_file(uninterrupted / "checkpoint-5" / "model.safetensors")
    final = weights(uninterrupted)
    for name, tensor in boundary.items():
        if not name.startswith("text_decoder"):
            assert torch.equal(tensor, initial[name]), name
    for part in ("text_decoder", "audio_encoder", "audio_adapter", "objectives.ctc"):
        changed = [name for name in final if name.startswith(part) and not torch.equal(final[name], boundary[name])]
        assert changed, part
    rows = metrics(uninterrupted)
    assert {row["stage"] for row in rows[:5]} == {"text"}
    assert "train/ctc" not in rows[0]
    assert "train/ctc" in rows[-1]


def test_frozen_parts_stay_in_evaluation_mode(corpus, tmp_path):
    """With dropout in the frozen encoder alone, two seeds of the steps give the same loss."""
    seen = []
    for seed in (0, 1):
        config = plain(corpus, tmp_path / str(seed), max_steps=1, seed=0, freeze_modules=["audio_encoder"])
        config["model"]["audio_encoder"]["model"]["dropout"] = 0.5
        with pytest.MonkeyPatch.context() as patch:
            import speechlmm_train.trainer.trainer as module

            step = module.seed_step
            patch.setattr(module, "seed_step", lambda s, *rest, seed=seed, step=step: step(s + seed, *rest))
            run(validate(config), plain=config, progress=False)
        seen.append(metrics(tmp_path / str(seed))[0]["train/loss"])
    assert seen[0] == seen[1]


def one_step(corpus, out, **training):
    """Losses, gradient norm and weights after one step over all 16 clips."""
    go(corpus, out, max_steps=1, lr_scheduler_type="constant", max_grad_norm=1e9, **training)
    return metrics(out)[0], weights(out)


def test_four_micro_batches_are_one_large_batch(corpus, tmp_path):
    # SGD: Adam would turn rounding differences of tiny gradients into full steps.
    common = {"optim": "sgd", "learning_rate": 0.1}
    large, after_large = one_step(corpus, tmp_path / "large", per_device_train_batch_size=16, **common)
    small, after_small = one_step(
        corpus, tmp_path / "small", per_device_train_batch_size=4, micro_batches_per_step=4, **common
    )
    padded, after_padded = one_step(
        corpus, tmp_path / "padded", per_device_train_batch_size=4, micro_batches_per_step=4, packed=False, **common
    )
    for name in ("train/loss", "train/lm", "train/ctc", "train/grad_norm"):
        assert small[name] == pytest.approx(large[name], rel=1e-5)
        assert padded[name] == pytest.approx(large[name], rel=1e-5)
    for name, tensor in after_large.items():
        torch.testing.assert_close(after_small[name], tensor, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(after_padded[name], tensor, atol=1e-5, rtol=1e-5)


def test_each_loss_is_divided_by_its_own_count(corpus, tmp_path):
    """Against sums over single examples and counts made by hand."""
    from speechlmm_core.data.chats import chat_of
    from speechlmm_core.data.jsonl.reader import JsonlExamples
    from speechlmm_core.processor.processor import SpeechLMMProcessor

    size = {"per_device_train_batch_size": 4, "micro_batches_per_step": 4}
    row, _ = one_step(corpus, tmp_path / "out", manifest="chat.jsonl", **size)  # chats: no prompt is drawn
    config = validate(plain(corpus, tmp_path / "out", max_steps=1))
    network = build_model(config, None).eval()
    processor = SpeechLMMProcessor.from_config(config.model)
    sums = {"lm": 0.0, "ctc": 0.0}
    letters = answers = 0
    for example in JsonlExamples(corpus / "chat.jsonl"):
        messages = chat_of(example)
        text = messages[-1].content[0]["text"]
        sample = processor.sample(messages, with_answer=True)
        with torch.no_grad():
            losses = network(**processor.collate([sample])).losses
        for name in sums:
            sums[name] += float(losses[name].sum)
        letters += len(text)
        answers += len(text.encode()) + 1  # over bytes, and the token that ends the turn
    assert row["train/ctc"] == pytest.approx(sums["ctc"] / letters, rel=1e-4)
    assert row["train/lm"] == pytest.approx(sums["lm"] / answers, rel=1e-4)


def test_learning_rates_of_parts(corpus, tmp_path):
    go(corpus, tmp_path / "out", max_steps=2, lr_groups={"text_decoder": 0.0, "text_decoder.model.lm_head": 1e-3})
    config = validate(plain(corpus, tmp_path / "out", max_steps=2))
    before, after = build_model(config, None).state_dict(), weights(tmp_path / "out")
    for name, tensor in after.items():
        still = name.startswith("text_decoder") and not name.startswith("text_decoder.model.lm_head")
        if still:
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(after["text_decoder.model.lm_head.weight"], before["text_decoder.model.lm_head.weight"])


def test_epochs(corpus, tmp_path):
    assert go(corpus, tmp_path / "out", num_epochs=1.5).steps == 6  # 16 clips in fours


def test_a_folder_that_is_not_empty(corpus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="is not empty; go on with --resume, or start anew with --overwrite"):
        go(corpus, out, max_steps=1)
    go(corpus, out, max_steps=1, overwrite=True)
    assert (out / "mine.txt").read_text() == "keep"
    assert go(corpus, out, max_steps=1, resume=True).steps == 1  # nothing left to do
    with pytest.raises(ConfigError, match="`model:` differs"):
        go(corpus, out, max_steps=1, resume=True, dropout=0.5)


def test_every_fault_in_the_data_before_anything_is_written(corpus, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"audio": "none.flac", "text": "a", "task": "asr"}\n{"audio": \n')
    config = plain(corpus, tmp_path / "out", max_steps=1)
    config["data"] = {"train": [str(tmp_path / "bad.jsonl")], "eval": [str(tmp_path / "nowhere.jsonl")]}
    with pytest.raises(DataError) as caught:
        run(validate(config), progress=False)
    message = str(caught.value)
    assert "bad.jsonl:1" in message
    assert "bad.jsonl:2" in message
    assert "nowhere.jsonl" in message
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_previous_checkpoint(corpus, tmp_path):
    import speechlmm_train.trainer.checkpointing as module

    save, calls = module.save_model, []

    def full(network, processor, folder, **kwargs):
        calls.append(folder)
        save(network, processor, folder, **kwargs)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save_model", full)
        with pytest.raises(CheckpointError, match="No space left on device; earlier checkpoints are still valid"):
            go(corpus, tmp_path / "out", max_steps=6)
    last = OutputFolder(tmp_path / "out").last_checkpoint()
    assert last is not None
    assert last.path.name == "checkpoint-2"
    assert not list((tmp_path / "out").glob(".*"))
    report = go(corpus, tmp_path / "out", max_steps=6, resume=True)
    lines, _ = closing_lines(report, validate(plain(corpus, tmp_path / "out", max_steps=6)))
    assert lines[-1].startswith("trained 4 steps in ")
    assert ", after 2 that had been done before; the model is in" in lines[-1]
    report = go(corpus, tmp_path / "whole", max_steps=6)
    assert (report.steps, report.steps_before) == (6, 0)
    assert_same_weights(tmp_path / "out", tmp_path / "whole")


def test_only_what_was_trained_is_saved_and_resumed(corpus, tmp_path):
    """`save: trainable` keeps everything where no component comes from a base checkpoint."""
    go(corpus, tmp_path / "out", max_steps=2, save="trainable", freeze_modules=["text_decoder"])
    assert any(name.startswith("text_decoder") for name in weights(tmp_path / "out"))


def test_training_goes_on_from_another_model(corpus, tmp_path):
    go(corpus, tmp_path / "first", max_steps=2)
    config = plain(corpus, tmp_path / "second", max_steps=1, pretrained_checkpoint=str(tmp_path / "first"))
    started = build_model(validate(config), None).state_dict()
    for name, tensor in weights(tmp_path / "first").items():
        assert torch.equal(tensor, started[name])


def test_ctrl_c_says_what_is_left_and_resuming_says_from_where(corpus, tmp_path, monkeypatch):
    import speechlmm_train.run as running
    from speechlmm_train.trainer.trainer import SpeechLMMTrainer

    told = []
    monkeypatch.setattr(running, "note", told.append)
    settings = {"max_steps": 4, "save_steps": 2}
    train = SpeechLMMTrainer.training_step
    for stop, left in (
        (1, "nothing was saved before the first checkpoint"),
        (3, "the last checkpoint is checkpoint-2"),
    ):

        def step(self, *args, stop=stop, **kwargs):
            if self.total_step == stop:
                raise KeyboardInterrupt
            return train(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(SpeechLMMTrainer, "training_step", step)
            with pytest.raises(KeyboardInterrupt, match=left):
                go(corpus, tmp_path / "out", resume=True, **settings)
    go(corpus, tmp_path / "out", resume=True, **settings)
    anew = "there is no checkpoint to go on from: training begins anew"
    assert told == [anew, anew, "goes on after step 2, from checkpoint-2"]
