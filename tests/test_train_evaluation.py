"""Evaluation while training: samples per task, the best checkpoint, early stopping, the guard set, what is resumed."""

import gc
import json
import logging
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny_runs import rows
from transformers import TrainerControl

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ListExamples
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.errors import ConfigError, MissingDependencyError, SpeechLMMError
from speechlmm_train.compose import validate
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.plan_table import mixture_lines
from speechlmm_train.preempted import PreemptedError
from speechlmm_train.run import run
from speechlmm_train.trainer import evaluation
from speechlmm_train.trainer.best import Rule, RunState, worsening
from speechlmm_train.trainer.open_sets import open_sets
from speechlmm_train.trainer.sample import even, sample_of
from speechlmm_train.trainer.summary import evaluation_lines, scores
from speechlmm_train.trainer.trainer import SpeechLMMTrainer

pytestmark = pytest.mark.usefixtures("one_thread", "little_garbage")

WORDS = ("red", "green", "blue", "one", "two", "three")
RATE = 16_000


@pytest.fixture(scope="module")
def little_garbage():
    """Leaves the libraries out of the garbage collection that begins every training."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Tones that stand for words: a manifest of two tasks, and one to guard."""
    root = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    lines = []
    for i in range(12):
        words = generator.integers(len(WORDS), size=2)
        tones = [np.sin(2 * np.pi * (300 + 400 * word) * np.arange(RATE // 8) / RATE) for word in words]
        soundfile.write(root / f"{i}.flac", (0.1 * np.concatenate(tones)).astype("float32"), RATE)
        text = " ".join(WORDS[word] for word in words)
        st = {"source_language": "en", "target_language": "de"}
        kind = {"task": "asr", "language": "en"} if i % 3 else {"task": "st", **st}
        lines.append({"id": f"clip-{i}", "audio": f"{i}.flac", "text": text, **kind})
    (root / "mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "asr.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line["task"] == "asr"))
    return root


def model():
    sizes = {"num_mel_bins": 16, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
    decoder = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    return {
        "audio_encoder": {
            "type": "whisper_unrestricted",
            "model": {**sizes, "encoder_ffn_dim": 32, "max_source_positions": 100},
        },
        "audio_adapter": {"type": "mlp", "stack": 2, "num_layers": 1},
        "text_decoder": {
            "type": "causal_lm",
            "tokenizer": "bytes",
            "chat_template": "chatml",
            "model": {**decoder, **heads},
        },
    }


def plain(corpus, out, *, data=None, stages=None, **training):
    return {
        "model": model(),
        "data": {"train": [str(corpus / "mixed.jsonl")], "eval": [str(corpus / "mixed.jsonl")], **(data or {})},
        "training": {
            "output_dir": str(out),
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_steps": None,
            "eval_max_new_tokens": 1,
            "eval_samples": 2,
            "report_to": [],
            **training,
        },
        "stages": stages or [],
    }


def go(*args, resume=False, **kwargs):
    config = plain(*args, **kwargs)
    return run(validate(config), plain=config, resume=resume, progress=False)


@pytest.fixture
def scripted(monkeypatch):
    """Evaluates, and reports in place of the figures a word error rate from a script."""
    script = {"eval": [], "guard": []}
    scored = evaluation.EvaluationCallback._figures

    def figures(self, kind, sample, engine):
        assert f"{kind}/asr_wer" in scored(self, kind, sample, engine)
        return {f"{kind}/asr_wer": script[kind].pop(0)}

    monkeypatch.setattr(evaluation.EvaluationCallback, "_figures", figures)
    return script


BEST = {"eval_steps": 1, "metric_for_best_model": "eval/asr_wer"}


class KilledError(Exception):
    """A run that ends in the midst of things."""


def checkpoints(out):
    return sorted(int(path.name.rpartition("-")[2]) for path in Path(out).glob("checkpoint-*"))


def test_each_task_has_its_sample_and_its_figures(corpus, tmp_path):
    data = {"eval": [str(corpus / "mixed.jsonl"), str(corpus / "asr.jsonl")]}
    go(corpus, tmp_path / "out", data=data, max_steps=2, eval_steps=2, eval_samples=3)
    (row,) = [row for row in rows(tmp_path / "out") if "eval/asr_wer" in row]
    assert {"eval/st_bleu", "eval/mixed/asr_wer", "eval/mixed/st_bleu", "eval/asr/asr_wer"} <= row.keys()
    lines = (tmp_path / "out" / "evaluations" / "step-2.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["task"] for answer in answers].count("asr") == 3
    assert [answer["task"] for answer in answers].count("st") == 3
    assert len({answer["key"] for answer in answers}) == 6


def examples(task, count):
    return ListExamples([Example(id=f"{task}-{i}", task=task, text="a") for i in range(count)])


def test_a_sample_is_spread_over_datasets_and_over_each_of_them():
    parts = [
        OpenedDataset("one/train", "one", "asr", examples("asr", 100)),
        OpenedDataset("two", "two", "asr", examples("asr", 3)),
        OpenedDataset("three", "three", None, examples("st", 4)),
    ]
    sample = sample_of(parts, 10)
    assert [sample.tasks.count(task) for task in ("asr", "st")] == [10, 4]
    assert [sample.datasets.count(name) for name in ("one", "two", "three")] == [7, 3, 4]
    (_, view), *_ = sample.parts
    assert [view[i].id for i in range(7)] == [f"asr-{i * 100 // 7}" for i in range(7)]
    assert view.whole is parts[0].examples
    assert even([5, 1, 9], 9) == [4, 1, 4]
    assert even([5, 1], 20) == [5, 1]


def test_the_best_checkpoint_is_kept_and_can_be_the_model(corpus, tmp_path, scripted):
    out = tmp_path / "out"
    scripted["eval"] += [0.9, 0.4, 0.6]
    report = go(corpus, out, max_steps=3, save_steps=1, save_total_limit=1, load_best_model_at_end=True, **BEST)
    assert checkpoints(out) == [2, 3]
    assert os.readlink(out / "best") == "checkpoint-2"
    best = {"figure": "eval/asr_wer", "value": 0.4, "step": 2, "checkpoint": "checkpoint-2", "greater": False}
    assert {name: report.best["train"][name] for name in best} == best
    saved = (out / "checkpoint-2" / "model.safetensors").read_bytes()
    assert (out / "model" / "model.safetensors").read_bytes() == saved
    assert (out / "checkpoint-3" / "model.safetensors").read_bytes() != saved


def test_without_being_asked_the_model_is_the_last(corpus, tmp_path, scripted):
    out = tmp_path / "out"
    scripted["eval"] += [0.4, 0.9]
    go(corpus, out, max_steps=2, save_steps=2, greater_is_better=True, **BEST)
    # The direction is turned round: the second is the best, which is the last as well.
    assert checkpoints(out) == [1, 2]
    assert os.readlink(out / "best") == "checkpoint-2"
    assert (out / "model/model.safetensors").read_bytes() == (out / "checkpoint-2/model.safetensors").read_bytes()


def test_a_stage_ends_early_and_the_next_begins(corpus, tmp_path, scripted):
    out = tmp_path / "out"
    stages = [{"name": "one", "max_steps": 9}, {"name": "two", "max_steps": 2}]
    scripted["eval"] += [0.5, 0.49, 0.6, 0.4, 0.3]
    patience = {"early_stopping_patience": 2, "early_stopping_threshold": 0.05}
    report = go(corpus, out, stages=stages, save_steps=100, **patience, **BEST)
    steps = [(row["stage"], row["step"]) for row in rows(out) if "train/loss" in row]
    assert steps == [("one", 1), ("one", 2), ("one", 3), ("two", 10), ("two", 11)]
    assert report.steps == 5
    assert report.best["one"]["step"] == 2  # better, but by too little to go on for
    assert report.best["two"]["step"] == 11
    assert "stage 'one' ends after 3 steps: eval/asr_wer has not improved in 2 evaluations" in report.warnings[0]
    # It is complete, and nothing is trained again.
    again = go(corpus, out, stages=stages, save_steps=100, resume=True, **patience, **BEST)
    assert again.best == report.best
    assert again.steps == 5


def test_patience_that_ends_where_the_stage_would_is_no_warning(corpus, tmp_path, scripted):
    scripted["eval"] += [0.4, 0.5, 0.6]
    report = go(corpus, tmp_path / "out", max_steps=3, early_stopping_patience=2, **BEST)
    assert (report.steps, report.warnings) == (3, [])
    assert not any("warning" in row for row in rows(tmp_path / "out"))


def test_evaluations_are_told_on_lines_of_their_own_and_at_the_end(corpus, tmp_path, scripted, capsys):
    scripted["eval"] += [0.4, 0.5]
    config = plain(corpus, tmp_path / "out", max_steps=9, early_stopping_patience=1, **BEST)
    report = run(validate(config), plain=config)
    lines = [piece.strip() for piece in re.split(r"[\r\n]", capsys.readouterr().err)]
    assert [line for line in lines if line.startswith("step ")] == [
        *("step 1: eval/asr_wer 0.4", "step 2: eval/asr_wer 0.5"),
        "step 2: stage 'train' ends after 2 steps: eval/asr_wer has not improved in 1 evaluation",
    ]
    assert [line.split() for line in evaluation_lines({**report.figures, "train/loss": 1.0}, report.best)[2:]] == [
        ["|", "eval/asr_wer", "|", "0.5", "|", "0.4", "|", "checkpoint-1", "|"]
    ]
    assert evaluation_lines({"train/loss": 1.0}, {}) == []
    some = {"eval/asr_wer": 0.5, "eval/asr_wer_words": 9, "eval/a/asr_wer": 0.1, "guard/asr_wer": 0.2}
    assert scores({**some, "guard/asr_wer_worsened": 0.0}) == {"eval/asr_wer": 0.5, "guard/asr_wer": 0.2}


def test_what_was_best_and_how_long_nothing_improved_is_resumed(corpus, tmp_path, scripted, monkeypatch):
    values = [0.9, 0.4, 0.6, 0.5]
    settings = {"save_steps": 1, "save_total_limit": 1, "early_stopping_patience": 2, **BEST}
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    guard = {"guard": [str(corpus / "asr.jsonl")]}
    guarded = [0.5, 0.5, 0.52, 0.56, 0.7]
    # Before the first step the guard set and the others are evaluated, and no checkpoint can be that.
    scripted["eval"] += [1.0, *values]
    scripted["guard"] += guarded
    report = go(corpus, whole, data=guard, max_steps=9, **settings)
    assert report.steps == 4

    from speechlmm_train.trainer.trainer import SpeechLMMTrainer

    save = SpeechLMMTrainer._save_checkpoint

    def killed(self, *args):
        save(self, *args)
        if self.total_step == 3:
            raise KilledError

    scripted["eval"][:] = [1.0, *values]
    scripted["guard"][:] = guarded
    with monkeypatch.context() as patch:
        patch.setattr(SpeechLMMTrainer, "_save_checkpoint", killed)
        with pytest.raises(KilledError):
            go(corpus, torn, data=guard, max_steps=9, **settings)
    resumed = go(corpus, torn, data=guard, max_steps=9, resume=True, **settings)
    assert resumed.best == report.best == {"train": {**report.best["train"], "step": 2}}
    assert resumed.guard == report.guard
    assert resumed.guard["guard/asr_wer"] == {
        **{"first": 0.5, "last": 0.7, "step": 4},
        "worsened": pytest.approx(0.4),
    }
    assert resumed.mixture == report.mixture
    assert [warning.split()[:3] for warning in resumed.warnings] == [
        ["step", "3:", "guard/asr_wer"],
        ["step", "4:", "guard/asr_wer"],
        ["step", "4:", "stage"],
    ]
    assert resumed.warnings == report.warnings
    assert checkpoints(torn) == checkpoints(whole) == [2, 4]
    assert os.readlink(torn / "best") == "checkpoint-2"
    names = ("model.safetensors", "config.json")
    for name in names:
        assert (torn / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


def test_the_next_stage_starts_from_the_best_also_when_resumed(corpus, tmp_path, scripted, monkeypatch):
    from speechlmm_train.trainer.trainer import SpeechLMMTrainer

    stages = [{"name": "one", "max_steps": 5}, {"name": "two", "max_steps": 1}]
    settings = {"early_stopping_patience": 2, "load_best_model_at_end": True, "learning_rate": 0.01, **BEST}
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    scripted["eval"] += [0.5, 0.9, 0.9, 0.4]
    go(corpus, whole, stages=stages, **settings)
    fetch = SpeechLMMTrainer.get_batch_samples

    def killed(self, *args):
        if self.stage.name == "two":
            raise KilledError
        return fetch(self, *args)

    scripted["eval"] += [0.5, 0.9, 0.9, 0.4]
    with monkeypatch.context() as patch:
        patch.setattr(SpeechLMMTrainer, "get_batch_samples", killed)
        with pytest.raises(KilledError):
            go(corpus, torn, stages=stages, **settings)
    assert checkpoints(torn) == [1, 3]  # the best, and where the stage ended
    report = go(corpus, torn, stages=stages, resume=True, **settings)
    assert report.steps == 4
    left, right = ((out / "model" / "model.safetensors").read_bytes() for out in (whole, torn))
    assert left == right


def test_the_reported_guard_is_that_of_the_weights(corpus, tmp_path, scripted):
    guard = {"guard": [str(corpus / "asr.jsonl")]}
    stages = [
        {"name": "one", "max_steps": 2, "data": guard},
        {"name": "two", "max_steps": 1, "data": {"guard": []}},
    ]
    scripted["eval"] += [0.9, 0.4, 0.6, 0.7]
    scripted["guard"] += [0.5, 0.52, 0.8]
    report = go(corpus, tmp_path / "out", stages=stages, load_best_model_at_end=True, **BEST)
    assert report.guard == {}, "the last stage has none"
    assert report.guards["one"]["guard/asr_wer"] == {
        **{"first": 0.5, "last": 0.52, "step": 1},
        "worsened": pytest.approx(0.04),
    }


def stop_in_step_2(monkeypatch):
    """Asks a run to stop while it does its second step; the run that goes on is left alone."""
    fetch, asked = SpeechLMMTrainer.get_batch_samples, []

    def ask(self, *args, **kwargs):
        if self.total_step == 1 and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
        return fetch(self, *args, **kwargs)

    monkeypatch.setattr(SpeechLMMTrainer, "get_batch_samples", ask)


def test_a_stop_at_the_evaluation_that_ends_a_stage_adds_no_step(corpus, tmp_path, scripted, monkeypatch):
    """What was put off ends the stage before the next step, so that the weights are those of a run without a stop."""
    settings = {"max_steps": 9, "save_steps": 1, "early_stopping_patience": 1, **BEST}
    settings |= {"micro_batches_per_step": 1, "learning_rate": 0.01}
    scripted["eval"] += [0.5, 0.9, 0.5, 0.9]
    whole = go(corpus, tmp_path / "whole", **settings)
    stop_in_step_2(monkeypatch)
    with pytest.raises(PreemptedError, match="stopped after step 2"):
        go(corpus, tmp_path / "out", **settings)
    report = go(corpus, tmp_path / "out", resume=True, **settings)
    assert scripted["eval"] == []
    assert report.steps == whole.steps == 2
    assert checkpoints(tmp_path / "out") == [1, 2]
    weights, others = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "out"))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_stop_at_an_evaluation_saves_first(corpus, tmp_path, scripted, monkeypatch):
    """Whoever asks for it does not wait for answers; the run that goes on evaluates what was put off."""
    scripted["eval"] += [0.9, 0.5, 0.7]
    out = tmp_path / "out"
    stop_in_step_2(monkeypatch)
    with pytest.raises(PreemptedError, match="stopped after step 2"):
        go(corpus, out, max_steps=3, save_steps=1, **BEST)
    assert scripted["eval"] == [0.5, 0.7]
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert os.readlink(out / "best") == "checkpoint-1"
    go(corpus, out, max_steps=3, save_steps=1, resume=True, **BEST)
    found = {row["step"]: row["eval/asr_wer"] for row in rows(out) if "eval/asr_wer" in row}
    assert found == {1: 0.9, 2: 0.5, 3: 0.7}
    assert os.readlink(out / "best") == "checkpoint-2"
    states = [json.loads((out / f"checkpoint-{step}" / "evaluation_state.json").read_text()) for step in (2, 3)]
    assert [state["owed"] for state in states] == [{"train": 2}, {}]
    assert states[1]["best"]["train"]["checkpoint"] == "checkpoint-2"


def test_resuming_by_another_figure_seeks_the_best_anew(corpus, tmp_path, scripted, caplog):
    out = tmp_path / "out"
    settings = {"save_steps": 1, "early_stopping_patience": 1, **BEST}
    scripted["eval"] += [0.2, 0.1]
    go(corpus, out, max_steps=2, **settings)
    scripted["eval"] += [0.6]
    with caplog.at_level(logging.WARNING):
        report = go(corpus, out, max_steps=3, resume=True, **{**settings, "greater_is_better": True})
    assert "the best is sought anew, for eval/asr_wer is another measure" in caplog.text
    assert report.best["train"]["step"] == 3
    assert os.readlink(out / "best") == "checkpoint-3"
    scripted["eval"] += [0.5]  # of a larger sample: not to be compared with 0.6
    settings["greater_is_better"] = True
    report = go(corpus, out, max_steps=4, resume=True, **{**settings, "eval_samples": 3})
    assert (report.best["train"]["value"], report.best["train"]["step"]) == (0.5, 4)


def test_the_guard_is_evaluated_again_when_it_is_measured_otherwise(corpus, tmp_path, scripted):
    out = tmp_path / "out"
    guard = {"guard": [str(corpus / "asr.jsonl")]}
    scripted["eval"] += [0.9, 0.8]
    scripted["guard"] += [0.5, 0.5]
    go(corpus, out, data=guard, max_steps=1, save_steps=1, eval_steps=1)
    scripted["eval"] += [0.7]
    scripted["guard"] += [0.8, 0.82]  # with longer answers: first anew, then that of the second step
    report = go(corpus, out, data=guard, max_steps=2, resume=True, save_steps=1, eval_steps=1, eval_max_new_tokens=2)
    assert report.guard["guard/asr_wer"]["first"] == 0.8
    assert any("the guard set is another or is measured otherwise" in warning for warning in report.warnings)
    assert not any("has worsened" in warning for warning in report.warnings)


def test_metrics_are_checked_in_the_languages_of_the_sample(corpus, tmp_path, monkeypatch):
    from speechlmm_train.metrics.translation import BLEUConfig

    scorer = BLEUConfig.scorer

    def needy(self, language):
        if language == "de":
            raise MissingDependencyError("there is no tokenizer for German")
        return scorer(self, language)

    monkeypatch.setattr(BLEUConfig, "scorer", needy)
    with pytest.raises(MissingDependencyError, match="for German"):
        go(corpus, tmp_path / "out", max_steps=1, eval_steps=1)
    assert not (tmp_path / "out").exists()


def test_the_guard_warns_beyond_its_tolerance(corpus, tmp_path, scripted, caplog):
    out = tmp_path / "out"
    scripted["eval"] += [0.9, 0.8, 0.7]
    scripted["guard"] += [0.5, 0.55, 0.56]
    with caplog.at_level(logging.WARNING):
        report = go(corpus, out, data={"guard": [str(corpus / "asr.jsonl")]}, max_steps=2, eval_steps=1)
    first, *_ = rows(out)
    assert (first["step"], first["guard/asr_wer"], first["eval/asr_wer"]) == (0, 0.5, 0.9)
    written = [row["warning"] for row in rows(out) if "warning" in row]
    assert len(written) == 1  # ten per cent are tolerated, twelve are not
    assert "guard/asr_wer has worsened from 0.5 to 0.56 (by 12.0 %" in written[0]
    assert written[0] in caplog.text
    assert report.warnings == [f"step 2: {written[0]}"]
    assert report.guard["guard/asr_wer"]["worsened"] == pytest.approx(0.12)
    saved = json.loads((out / "train_report.json").read_text())
    assert saved["guard"] == report.guard
    assert saved["warnings"] == report.warnings


def test_worse_is_what_the_metric_says():
    assert worsening(0.5, 0.6, greater=False) == pytest.approx(0.2)
    assert worsening(40.0, 30.0, greater=True) == pytest.approx(0.25)
    assert worsening(40.0, 44.0, greater=True) == pytest.approx(-0.1)
    assert worsening(-0.5, -0.6, greater=True) == pytest.approx(0.2)
    assert worsening(0.0, 0.3, greater=False) == 0.3


def test_a_figure_without_a_value_is_never_the_best():
    state, rule = RunState(), Rule("eval/st_bleu", greater=True, patience=2)
    nothing = {"eval/st_bleu": float("nan")}
    assert state.judge("one", nothing, rule=rule, step=1) == (False, False)
    assert state.judge("one", {"eval/st_bleu": 0.0}, rule=rule, step=2) == (True, False)
    assert state.judge("one", nothing, rule=rule, step=3) == (False, False)
    assert state.judge("one", {}, rule=rule, step=4) == (False, True)
    assert state.judge("two", {"eval/st_bleu": -1.0}, rule=rule, step=5) == (True, False)
    assert state.kept == {"checkpoint-2", "checkpoint-5"}


def test_a_metric_without_a_number_does_not_end_a_training(corpus, tmp_path, monkeypatch):
    def none(self, answers):
        return np.full((len(answers), 4), np.nan)

    monkeypatch.setattr("speechlmm_train.metrics.wer.WERConfig.statistics", none)
    out = tmp_path / "out"
    report = go(corpus, out, max_steps=1, eval_samples=1, **BEST)
    assert report.steps == 1
    assert [warning.partition(":")[0] for warning in report.warnings] == ["step 1"] * 2
    assert "metric 'wer' has no number (NaN) for the prediction" in report.warnings[0]
    assert "eval/asr_wer has no value" in report.warnings[1]
    assert not report.best
    (row,) = [row for row in rows(out) if "eval/asr_cer" in row]
    assert "eval/st_bleu" in row, "the other metrics have their figures"
    assert "eval/asr_wer" not in row


def test_a_figure_that_will_not_be_there_is_refused_at_the_start(corpus, tmp_path):
    message = (
        r"training.metric_for_best_model: stage 'train' will have no figure 'eval/asr_were'; "
        r"did you mean 'eval/asr_wer'\? \(it will have: eval/st_bleu, .*eval/asr_wer, eval/asr_cer\)"
    )
    with pytest.raises(ConfigError, match=message):
        go(corpus, tmp_path / "out", max_steps=2, eval_steps=1, metric_for_best_model="eval/asr_were")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric_for_best_model": "eval/asr_wer"}, "metric_for_best_model needs evaluations: set eval_steps"),
        ({"eval_steps": 1, "early_stopping_patience": 2}, "early_stopping_patience needs metric_for_best_model"),
        ({"eval_steps": 1, "load_best_model_at_end": True}, "load_best_model_at_end needs metric_for_best_model"),
    ],
)
def test_settings_that_need_each_other(corpus, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        validate(plain(corpus, tmp_path, max_steps=1, **settings))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"metric_for_best_model": "eval/asr_wer"}, "stage 'one': metric_for_best_model needs evaluations"),
        ({"eval_steps": 1, "early_stopping_patience": 1}, "'one': early_stopping_patience needs metric_for_best_model"),
        ({"eval_steps": 1, "metric_for_best_model": "wer"}, "stage 'one' will have no figure 'wer'"),
    ],
)
def test_settings_of_a_stage(corpus, tmp_path, stage, message):
    with pytest.raises(ConfigError, match=message):
        go(corpus, tmp_path / "out", stages=[{"name": "one", "max_steps": 1, **stage}])


def test_waiting_for_data_and_the_mixture_are_logged(corpus, tmp_path):
    out = tmp_path / "out"
    report = go(corpus, out, data={"task_weights": {"asr": 1, "st": 1}}, max_steps=6, logging_steps=3)
    logged = [row for row in rows(out) if "train/loss" in row]
    assert [row["step"] for row in logged] == [3, 6]
    for row in logged:
        assert 0 <= row["train/data_wait"] <= 1
        assert row["data/share_asr"] + row["data/share_st"] == pytest.approx(1)
    # An epoch of three steps holds twelve examples, half of them of each task.
    assert [row["data/share_asr"] for row in logged] == [0.5, 0.5]
    table = {row["task"]: row for row in report.mixture["train"]}
    assert (table["asr"]["examples"], table["st"]["examples"]) == (8, 4)
    assert (table["asr"]["share"], table["asr"]["asked"]) == (0.5, 0.5)
    assert (table["asr"]["times"], table["st"]["times"]) == (1.5, 3)
    assert table["st"]["hours"] == pytest.approx(4 * 0.25 / 3600)


def test_the_model_answers_as_it_does_when_it_is_loaded_again(corpus, tmp_path):
    """Training in mixed precision does not reach into the evaluation, which the saved weights have to repeat."""
    from speechlmm_core.inference.options import GenerationOptions
    from speechlmm_core.model.speechlmm import SpeechLMM
    from speechlmm_core.processor.processor import SpeechLMMProcessor
    from speechlmm_train.evaluate.evaluate import evaluate

    out = tmp_path / "out"
    settings = {"bf16": True, "use_cpu": True, "learning_rate": 0.01, "eval_max_new_tokens": 24, "eval_samples": 4}
    go(corpus, out, max_steps=4, eval_steps=4, save_steps=4, **settings)
    rows = [json.loads(line) for line in (out / "evaluations" / "step-4.jsonl").read_text().splitlines()]
    loaded = SpeechLMM.from_pretrained(out / "checkpoint-4")
    processor = SpeechLMMProcessor.from_pretrained(out / "checkpoint-4")
    config = validate(plain(corpus, out, max_steps=1))
    sample = sample_of(open_sets(config.data, Path.cwd()).evaluation, 4)
    ((name, view),) = sample.parts
    options = GenerationOptions(max_new_tokens=24)
    again = evaluate(loaded, processor, view, options=options, dataset=name).predictions
    assert [row["text"] for row in rows] == [one.text for one in again]
    assert [row["key"] for row in rows] == [one.key for one in again]
    assert any(row["text"] for row in rows)


class SecondOfTwo(Ranks):
    """The second rank, to which the first has sent something."""

    def share(self, work, told):
        return work(), [[], []]

    def on_main(self, work):
        if isinstance(self.group, Exception):
            raise self.group
        return self.group


@pytest.fixture
def second_rank():
    """A callback on the second rank, to which the first sends what it is told to."""

    def of(sent):
        trainer = SimpleNamespace(run_state=RunState(), ranks=SecondOfTwo(1, 2, 1, sent), stopped=False)
        training = validate(
            {"model": model(), "data": {"train": ["a"], "eval": ["a"]}, "training": BEST_OF_ONE}
        ).training
        callback = evaluation.EvaluationCallback(trainer, SimpleNamespace(samples={}), training)
        callback._answers = lambda kinds: {}
        return callback

    return of


BEST_OF_ONE = {"output_dir": "out", "max_steps": 9, "eval_steps": 2, "metric_for_best_model": "eval/asr_wer"}


def test_the_other_ranks_learn_what_was_decided(second_rank):
    state = RunState(stale={"train": 1}, guarded="dev")
    callback = second_rank(((True, True), state))
    control = TrainerControl()
    callback.on_step_end(None, SimpleNamespace(global_step=3), control)
    assert not control.should_training_stop
    callback.on_step_end(None, SimpleNamespace(global_step=4), control)
    assert (control.should_save, control.should_training_stop) == (True, True)
    assert callback.state == state


def test_the_other_ranks_do_not_wait_for_an_evaluation_that_failed(second_rank):
    callback = second_rank(SpeechLMMError("no memory"))
    with pytest.raises(SpeechLMMError, match="no memory"):
        callback.on_step_end(None, SimpleNamespace(global_step=2), TrainerControl())


def test_plan_shows_the_mixture(corpus, tmp_path):
    config = plain(
        corpus, tmp_path / "out", max_steps=2, data={"mixing": "alternating", "task_weights": {"asr": 3, "st": 1}}
    )
    lines = list(mixture_lines(validate(config), Path.cwd()))
    assert lines[0] == "data of train: alternating mixing, an epoch takes 4.0 steps"
    cells = [line.split() for line in lines[1:]]
    assert cells[0] == ["DATASET", "TASK", "EXAMPLES", "HOURS", "ASKED", "SHARE", "OF", "POSITIONS", "TIMES"]
    asr, st = sorted(cells[1:3], key=lambda row: row[1])
    # Eight and four examples of a quarter of a second; of twelve, nine and three.
    assert asr[1:8] == ["asr", "8", "0.00", "75.0", "%", "75.0", "%"]
    assert st[1:8] == ["st", "4", "0.00", "25.0", "%", "25.0", "%"]
    assert (asr[-1], st[-1]) == ("1.12", "0.75")
    assert cells[3][:2] == ["total", "12"]
    missing = plain(corpus, tmp_path / "out", max_steps=2, data={"train": ["nowhere.jsonl"]})
    (line,) = mixture_lines(validate(missing), tmp_path)
    assert line.startswith("the mixture is not shown, as these data are not there: ")
    assert "nowhere.jsonl" in line
