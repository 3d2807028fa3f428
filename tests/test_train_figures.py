"""What a training logs: losses by task, gradients by part, sums over ranks, and where figures go."""

from __future__ import annotations

import sys
import time
from types import ModuleType

import pytest
import torch
from tiny_runs import rows

from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.compose import validate
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.run import build_model, run
from speechlmm_train.trainer.best import RunState
from speechlmm_train.trainer.meter import Meter, Utilisation
from speechlmm_train.trainer.stage_data import open_stages

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = {"name": "spoken", "target_module": "text_decoder", "r": 2}
WEIGHTS = {"lm": 1.0, "ctc": 0.5}
UNITS = {"lm": "supervised_tokens", "ctc": "ctc_targets"}


class Wandb(ModuleType):
    """Stands in for Weights & Biases."""

    def __init__(self):
        super().__init__("wandb")
        self.logged, self.options, self.finished = [], {}, 0

    def init(self, **options):
        self.options = options
        return self

    def log(self, figures, step):
        self.logged.append((step, figures))

    def finish(self):
        self.finished += 1


@pytest.fixture(scope="module")
def trained(noise, tmp_path_factory):
    """A run of two steps, with an adapter, into every sink; its folder, its configuration and what W&B was told."""
    out = tmp_path_factory.mktemp("run") / "out"
    wandb = Wandb()
    config = noise.plain(
        out,
        max_steps=2,
        lora_adapters=[LORA],
        report_to=["tensorboard", "wandb"],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", wandb)
        report = run(validate(config), plain=config, progress=False)
    return out, config, wandb, report


@pytest.fixture(scope="module")
def naive(trained):
    """The first step, sample by sample: sums of losses and units by task and objective, and the gradient."""
    config = validate(trained[1])
    processor = SpeechLMMProcessor.from_config(config.model)
    (stage,) = open_stages(config, processor, base=trained[0], world_size=1)
    model = build_model(config, None)
    from speechlmm_train.trainer.checks import freeze_for

    freeze_for(model, stage.settings)
    model.train()
    sums, counts = {}, {}
    losses = {name: [] for name in WEIGHTS}
    for micro_batch in stage.plan.step(0):
        for number in micro_batch:
            index = int(stage.indices[number])
            task = stage.examples[index].task
            messages = stage.examples.chat(index, draw=drawn(stage, index))
            batch = processor.collate([processor.sample(messages, with_answer=True)])
            for name, loss in model(**batch).losses.items():
                key = (task, name)
                sums[key] = sums.get(key, 0.0) + float(loss.sum.detach())
                counts[key] = counts.get(key, 0) + batch["num_items"][UNITS[name]]
                losses[name].append(loss.sum)
    totals = {name: sum(count for (_, one), count in counts.items() if one == name) for name in WEIGHTS}
    whole = sum(WEIGHTS[name] * sum(own) / totals[name] for name, own in losses.items())
    whole.backward()
    return sums, counts, totals, float(whole.detach()), model


def drawn(stage, index):
    from speechlmm_core.data.draw import draw

    return draw(stage.plan.seed, 0, index)


def test_losses_by_task_are_those_of_single_samples(trained, naive):
    sums, counts, totals, whole, _ = naive
    first = rows(trained[0])[0]
    assert {task for task, _ in sums} == {"asr", "st"}
    for (task, name), value in sums.items():
        assert first[f"train/{task}/{name}"] == pytest.approx(value / counts[task, name], rel=1e-5)
    for name, total in totals.items():
        value = sum(own for (_, one), own in sums.items() if one == name) / total
        assert first[f"train/{name}"] == pytest.approx(value, rel=1e-5)
    assert first["train/loss"] == pytest.approx(whole, rel=1e-5)


def test_gradient_norms_by_part(trained, naive):
    model: SpeechLMM = naive[-1]
    first = rows(trained[0])[0]
    squares = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = "lora_spoken" if ".lora_" in name else "objectives.ctc" if "ctc" in name else name.split(".")[0]
            squares[part] = squares.get(part, 0.0) + float(parameter.grad.double().square().sum())
    assert squares.keys() == {"audio_encoder", "audio_adapter", "lora_spoken", "objectives.ctc"}
    prefix = "train/grad_norm/"
    logged = {name.removeprefix(prefix): value for name, value in first.items() if name.startswith(prefix)}
    assert logged == pytest.approx({part: value**0.5 for part, value in squares.items()}, rel=1e-4)
    for row in rows(trained[0]):  # before clipping, which leaves 0.01
        parts = [value for name, value in row.items() if name.startswith(prefix)]
        assert sum(value**2 for value in parts) ** 0.5 == pytest.approx(row["train/grad_norm"], rel=1e-5)
        assert row["train/grad_norm"] > 0.02


def test_speed_and_padding(trained):
    (first, second) = rows(trained[0])
    for row in (first, second):
        seconds = row["train/step_seconds"]
        assert row["train/audio_seconds_per_second"] == pytest.approx(row["train/frames_per_second"] / 50, rel=1e-9)
        assert row["train/position_padding"] == 0  # packed
        assert 0 < row["train/frame_padding"] < 0.5
        assert 0 < row["train/mfu"] < 1
        assert 0 <= row["train/data_wait"] <= 1
        assert seconds > 0
    # Twelve examples in a step are all of them.
    frames = sum(int(16_000 * (0.4 + 0.1 * i)) // 320 for i in range(12))
    assert first["train/frames_per_second"] * first["train/step_seconds"] == pytest.approx(frames, abs=12)
    assert "train/peak_memory_gib" not in first


def test_writing_a_checkpoint_does_not_slow_the_training_down(noise, tmp_path, monkeypatch):
    from speechlmm_train.trainer import trainer as training

    clock, write, passed = time.perf_counter, training.write_checkpoint, [0.0]

    def slowly(trainer):
        write(trainer)
        passed[0] += 1e6

    monkeypatch.setattr(training, "write_checkpoint", slowly)
    monkeypatch.setattr("speechlmm_train.trainer.meter.time.perf_counter", lambda: clock() + passed[0])
    config = noise.plain(tmp_path / "out", max_steps=3, save_steps=1)
    run(validate(config), plain=config, progress=False)
    assert passed == [3e6]
    assert all(row["train/step_seconds"] < 1e5 for row in rows(tmp_path / "out"))


def test_every_sink_gets_the_same(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, config, wandb, report = trained
    logged = rows(out)
    assert [step for step, _ in wandb.logged] == [1, 2]
    assert wandb.finished == 1
    assert wandb.options["config"] == config
    for (_, figures), row in zip(wandb.logged, logged, strict=True):
        assert {"step", "stage"} | figures.keys() == row.keys()
        assert all(figures[name] == row[name] for name in figures)
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == logged[0].keys() - {"step", "stage"}
    for name in events.Tags()["scalars"]:
        assert [one.value for one in events.Scalars(name)] == pytest.approx([row[name] for row in logged], rel=1e-6)
    assert report.figures == {name: value for name, value in logged[-1].items() if name not in ("step", "stage")}


def test_a_run_that_goes_on_keeps_every_point(noise, tmp_path):
    """The step that it goes on from was logged before, and is not logged again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (1, 2):
        config = noise.plain(tmp_path, max_steps=steps, save_steps=1, report_to=["tensorboard"])
        run(validate(config), plain=config, resume=steps == 2, progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(one.step, one.value) for one in events.Scalars("train/loss")]
    assert found == [(row["step"], pytest.approx(row["train/loss"], rel=1e-6)) for row in rows(tmp_path)]
    assert [step for step, _ in found] == [1, 2]


def test_a_picture_of_the_run(trained, tmp_path, caplog):
    from matplotlib.image import imread

    from speechlmm_train.trainer.curves import PANELS, save_curves

    assert imread(trained[0] / "training.png").shape[0] > 500
    names = ["train/loss", "train/lm", "train/asr/lm", "train/grad_norm", "train/grad_norm/text_decoder", "train/mfu"]
    names += ["train/lr", "train/tokens_per_second", "eval/asr_wer", "eval/asr_wer_words", "eval/slow/asr_wer"]
    shown = {panel.title: list(panel.labels(names).values()) for panel in PANELS}
    assert list(shown.values()) == [
        ["loss", "lm"],
        ["asr: lm"],
        ["whole", "text_decoder"],
        ["learning rate"],
        ["positions / s"],
        ["MFU"],
        ["eval/asr_wer"],
    ]
    # A line that was cut off by a kill, a warning, and a value that is no number.
    lines = ['{"step": 1, "train/loss": 2.0}', '{"step": 2, "warning": "w"}', '{"step": 2, "train/loss": NaN}', '{"ste']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    save_curves(tmp_path)
    assert (tmp_path / "training.png").exists()
    (tmp_path / "empty").mkdir()
    save_curves(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
    assert not caplog.records


class Clock:
    """What the meter takes for the time."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("speechlmm_train.trainer.meter.time.perf_counter", lambda: self.now)


def test_time_is_counted_from_the_first_step_on(trained, monkeypatch):
    """Not from when the trainer was made: until the first step, models are spread and optimisers read."""
    processor = SpeechLMMProcessor.from_config(validate(trained[1]).model)
    clock = Clock(monkeypatch)
    meter = Meter(processor, "train", None, RunState())
    clock.now = 100.0
    with meter.paused():
        clock.now = 130.0
    for step in range(2):
        meter.begin(step)
        clock.now += 1.5
        meter.measure([], {})
    clock.now += 1.0
    first = meter.figures({"learning_rate": 0.1}, 2, device=torch.device("cpu"), ranks=Ranks())
    assert first["train/step_seconds"] == pytest.approx(2.0)
    clock.now += 0.5  # from one line to the next, everything counts
    meter.begin(2)
    with meter.paused():
        clock.now += 9.0
    clock.now += 0.25
    meter.measure([], {})
    second = meter.figures({"learning_rate": 0.1}, 3, device=torch.device("cpu"), ranks=Ranks())
    assert second["train/step_seconds"] == pytest.approx(0.75)


class Together(Ranks):
    """One of two processes whose sums are added up."""

    others = ()

    def gather(self, value):
        return [value, *self.others]


def test_figures_of_several_ranks_are_those_of_one(trained, monkeypatch):
    """Two meters with half of the micro-batches each, against one with all of them."""
    config = validate(trained[1])
    processor = SpeechLMMProcessor.from_config(config.model)
    (stage,) = open_stages(config, processor, base=trained[0], world_size=1)
    model = build_model(config, None)
    batches = [next(iterator) for iterator in [iter(stage.batches(0, rank=0))] for _ in range(4)]
    use = Utilisation(lambda sums: 1e9 * sums["positions"], 1e12)
    clock = Clock(monkeypatch)

    def meter_of(own):
        meter = Meter(processor, "train", stage.mixture, RunState(), objectives=list(WEIGHTS), utilisation=use)
        clock.now = 3.0
        meter.begin(0)
        clock.now = 5.0
        meter.measure(own, {unit: sum(one["num_items"][unit] for one in batches) for unit in UNITS.values()})
        for batch in own:
            for name, loss in model(
                **{k: v for k, v in batch.items() if k not in ("origin", "items_by_sample")}
            ).losses.items():
                mean = loss.sum.detach() / sum(one["num_items"][UNITS[name]] for one in batches)
                meter.add_loss(name, loss, mean, batch)
                meter.add_total(WEIGHTS[name] * mean)
        return meter

    def figures(meter, ranks):
        return meter.figures({"learning_rate": 0.1}, 1, device=torch.device("cpu"), ranks=ranks)

    class Spy(Ranks):
        def gather(self, value):
            Together.others = [value]
            return [value]

    alone = figures(meter_of(batches), Ranks())
    figures(meter_of(batches[1::2]), Spy())
    both = figures(meter_of(batches[0::2]), Together(world_size=2))
    assert both.keys() == alone.keys()
    for name, value in alone.items():
        wanted = value / 2 if name == "train/mfu" else value  # two devices could do twice as much
        assert both[name] == pytest.approx(wanted, rel=1e-5), name
