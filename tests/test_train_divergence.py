"""A training that goes wrong stops with the names of the samples, and a healthy one never does."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlmm_core.errors import DivergedError
from speechlmm_core.wording import FAULT, word
from speechlmm_train.trainer.best import RunState
from speechlmm_train.trainer.divergence import Judge
from speechlmm_train.watching_config import Watching

pytestmark = pytest.mark.usefixtures("one_thread")


def judged(losses, norms=None, **options):
    """The step that is stopped at, and why; None where none is."""
    judge = Judge(Watching(**options))
    for step, loss in enumerate(losses):
        fault = judge.fault({"lm": loss}, norms[step] if norms else 1.0)
        if fault is not None:
            return step, fault
    return None


def noisy(level, steps, seed=0):
    generator = random.Random(seed)
    return [level(step) * math.exp(generator.gauss(0, 0.2)) for step in range(steps)]


HEALTHY = {
    "from random weights": noisy(lambda step: 0.05 + 11.8 * math.exp(-step / 50), 600),
    "a large objective": noisy(lambda step: 2 + 250 * math.exp(-step / 30), 600),
    "a warm-up that first makes it worse": noisy(lambda step: 2 + 4 * math.exp(-(((step - 60) / 20) ** 2)), 300),
    "single spikes": [80.0 if step % 40 == 30 else 1.0 for step in range(400)],
    "a new dataset, up to guessing": [0.05] * 200 + [9.5] * 200,
    "nothing but zeros": [0.0] * 100,
}


@pytest.mark.parametrize("losses", HEALTHY.values(), ids=HEALTHY.keys())
def test_what_is_healthy_goes_on(losses):
    assert judged(losses) is None


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200))
@settings(deadline=None, max_examples=50)
def test_losses_below_guessing_go_on(losses):
    assert judged(losses) is None


def test_a_rise_that_stays_is_an_explosion():
    losses = noisy(lambda step: 2 if step < 100 else 60, 200)
    step, fault = judged(losses)
    assert step == 102  # the third in a row
    assert fault.objective == "lm"
    assert "for 3 steps in a row (training.stop_on_explosion)" in fault.what
    assert judged(losses, stop_on_explosion=None) is None
    assert judged(losses, stop_on_explosion=100) is None
    assert judged([12.0] * 50 + [20.0] * 50) is None  # not twice what it began with


def test_a_limit_of_the_users_holds_at_once():
    step, fault = judged([1.0, 3.0], max_loss=2.5)
    assert (step, fault.objective, fault.limit) == (1, "lm", 2.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_stops_always(bad):
    step, fault = judged([1.0, bad], stop_on_explosion=None)
    assert (step, fault.objective) == (1, "lm")
    step, fault = judged([1.0, 1.0], norms=[1.0, bad])
    assert (step, fault.objective) == (1, None)
    assert "though the losses are" in fault.what


def test_a_run_that_is_resumed_often_stops_where_one_that_was_not_does(tmp_path):
    losses = noisy(lambda step: 2 if step < 100 else 60, 200)
    state = RunState()
    for step, loss in enumerate(losses):
        if step % 15 == 0 or step in (101, 102):  # in the middle of the steps that are too high, too
            state.write(tmp_path)
            state = RunState.read(tmp_path)
            judge = Judge(Watching(), state.loss_histories.setdefault("train", {}))
        if judge.fault({"lm": loss}, 1.0) is not None:
            break
    assert step == judged(losses)[0] == 102
    assert len(state.loss_histories["train"]["lm"].recent) == 100


def test_what_a_loss_was_before_comes_along_with_checkpoints(noise, tmp_path):
    out = tmp_path / "out"
    for steps in (2, 5):
        go(noise.plain(out, max_steps=steps, save_steps=1, preflight=False), resume=steps == 5)
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    (histories,) = RunState.read(out / "checkpoint-5").loss_histories.values()
    assert histories.keys() == {"lm", "ctc"}
    for name, history in histories.items():
        assert history.recent == pytest.approx([row[f"train/{name}"] for row in rows], rel=1e-6)
        assert len(history.recent) == 5
    damaged = json.loads((out / "checkpoint-5" / "evaluation_state.json").read_text())
    damaged["loss_histories"]["train"]["lm"] = 7
    (tmp_path / "evaluation_state.json").write_text(json.dumps(damaged))
    assert RunState.read(tmp_path) == RunState()


def go(config, **options):
    from speechlmm_train.compose import validate
    from speechlmm_train.run import run

    return run(validate(config), plain=config, progress=False, **options)


@pytest.fixture
def one_is_none(monkeypatch):
    """A file whose samples are no numbers, as they might come out of an augmentation."""
    from speechlmm_encoders.whisper.config import UnrestrictedWhisperEncoderConfig as Config

    load = Config.load

    def loaded(self, item):
        medium = load(self, item)
        if item["path"].endswith("/7.flac"):
            medium.values.fill_(torch.nan)
        return medium

    monkeypatch.setattr(Config, "load", loaded)


def stopped(config, out, match, **options):
    with pytest.raises(DivergedError, match=match) as caught:
        go(config, **options)
    (line,), code = word(caught.value)
    assert code == FAULT
    assert not (out / "model").exists()
    assert (out / "training.png").exists() == bool((out / "metrics.jsonl").read_text())
    return line, json.loads((out / "diverged.json").read_text())


def test_a_sample_that_is_no_number_is_named(noise, tmp_path, one_is_none, monkeypatch):
    out = tmp_path / "out"
    config = noise.plain(out, max_steps=6, micro_batches_per_step=2, save_steps=1, preflight=False)
    line, told = stopped(config, out, r"is not a finite number \(nan\); the sample: '.*' \(.*speech\.jsonl:8\); ")
    assert "\n" not in line
    (sample,) = told["samples"]
    assert sample["place"].endswith("speech.jsonl:8")
    assert (sample["rank"], told["stage"]) == (0, "train")
    assert sample["losses"][told["objective"]] == "nan"
    assert told["losses"][told["objective"]] == "nan"
    assert told["learning_rate"] > 0
    step = told["step"]
    assert step in (1, 2)  # of twelve examples six come in a step
    # Nothing of the step was learnt or saved: what is there are the steps before.
    assert [path.name for path in out.glob("checkpoint-*")] == [f"checkpoint-{n}" for n in range(1, step)]
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, step))
    # With the file mended the run goes on.
    monkeypatch.undo()
    if step == 2:
        assert go(config, resume=True).steps == 6
    else:
        assert go(config, overwrite=True).steps == 6
    assert not (out / "diverged.json").exists()


def record_gradients(model, gradients):
    """Keeps what has been accumulated of each parameter's gradient, by name."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda one, name=name: gradients.__setitem__(name, one.grad.detach().clone())
            )


def norms_of(gradients):
    """The norm of each part's gradient, number by number."""
    squares = {}
    for name, gradient in gradients.items():
        part = "objectives.ctc" if name.startswith("objectives.ctc") else name.split(".")[0]
        squares[part] = squares.get(part, 0.0) + float(gradient.double().square().sum())
    return {part: math.sqrt(value) for part, value in squares.items()}


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_no_number_stops_before_the_optimiser(noise, tmp_path, monkeypatch, bad):
    import speechlmm_train.run as running

    out = tmp_path / "out"
    build, built, seen, gradients = running.build_model, [], [], {}

    def hooked(*args, **kwargs):
        model = build(*args, **kwargs)
        weight = model.get_submodule("audio_adapter").get_parameter(next(model.audio_adapter.named_parameters())[0])

        def overflow(grad):
            seen.append(grad)
            return grad * (bad if len(seen) == 4 else 1)

        weight.register_hook(overflow)
        record_gradients(model, gradients)
        built.append(model)
        return model

    monkeypatch.setattr(running, "build_model", hooked)
    # Without the try-out of the longest examples, whose backward pass would count, too.
    config = noise.plain(out, max_steps=6, micro_batches_per_step=2, preflight=False)
    _, told = stopped(
        config, out, r"step 2: the gradient is not a finite number .*; the step's samples: .* and 3 more; "
    )
    assert told["objective"] is None
    assert len(told["samples"]) == 6
    assert all(isinstance(sample["losses"]["lm"], float) for sample in told["samples"])
    assert told["grad_norm"] == told["grad_norms"].pop("audio_adapter")
    assert told["grad_norm"] in ("inf", "nan")  # where it was zero, infinity makes it none
    expected = norms_of(gradients)
    del expected["audio_adapter"]
    assert told["grad_norms"] == pytest.approx(expected, rel=1e-4)
    assert sum(norm**2 for norm in expected.values()) > 0.01**2  # more than clipping would have left
    assert all(parameter.isfinite().all() for parameter in built[0].parameters())


@pytest.mark.parametrize("limit", [0.01, 0.0], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("scale", [1, 1024])
def test_norms_are_those_before_clipping_and_without_the_loss_scale(noise, tmp_path, monkeypatch, limit, scale):
    import speechlmm_train.run as running

    out, build, gradients, unscaled = tmp_path / "out", running.build_model, {}, []
    model = None

    def hooked(*args, **kwargs):
        nonlocal model
        model = build(*args, **kwargs)
        record_gradients(model, gradients)
        return model

    def backward(self, loss, **kwargs):
        (loss * scale).backward()

    def unscale(self, optimizer=None):
        unscaled.append(None)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= scale

    # What fp16 does on a GPU.
    monkeypatch.setattr(Accelerator, "backward", backward)
    monkeypatch.setattr(Accelerator, "unscale_gradients", unscale)
    monkeypatch.setattr(running, "build_model", hooked)
    config = noise.plain(out, max_steps=2, max_loss=0.1, max_grad_norm=limit, logging_steps=100, preflight=False)
    _, told = stopped(config, out, "above training.max_loss")
    assert len(unscaled) == told["step"] == 1
    expected = norms_of({name: gradient / scale for name, gradient in gradients.items()})
    assert told["grad_norms"] == pytest.approx(expected, rel=1e-4)
    assert told["grad_norm"] == pytest.approx(math.hypot(*expected.values()), rel=1e-4)


def test_a_learning_rate_that_explodes(noise, tmp_path):
    out = tmp_path / "out"
    config = noise.plain(out, max_steps=20, learning_rate=30.0, max_loss=50.0, lr_scheduler_type="constant")
    _, told = stopped(config, out, "above training.max_loss=50|not a finite number")
    assert told["learning_rate"] == 30.0
    values = [math.inf if isinstance(v, str) else v for v in (s["losses"][told["objective"]] for s in told["samples"])]
    assert values == sorted(values, reverse=True)
    assert values[0] > 50


PATCH = """
import torch
from speechlmm_encoders.whisper.config import UnrestrictedWhisperEncoderConfig as Config

load = Config.load


def loaded(self, item):
    medium = load(self, item)
    if item["path"].endswith("/7.flac"):
        medium.values.fill_(torch.nan)
    return medium


Config.load = loaded
"""


def test_every_rank_stops_where_one_goes_wrong(noise, tmp_path, run_ranks):
    out = tmp_path / "out"
    (tmp_path / "patch.py").write_text(PATCH)
    config = noise.plain(out, max_steps=4, micro_batches_per_step=4, preflight=False, peak_tflops=None)
    done = run_ranks(config, imports=[tmp_path / "patch.py"])
    assert done.code == FAULT, done.err
    assert done.err.count("the loss of ") == 1, done.err
    told = json.loads((out / "diverged.json").read_text())
    assert [sample["place"].rpartition("/")[2] for sample in told["samples"]] == ["speech.jsonl:8"]
    assert told["step"] == 1  # a step is all of the corpus
    assert not (out / "model").exists()
