"""The same training on one process and on several, in every way to share it, against a plain loop over its batches."""

import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny_runs import RUN_EACH, rows, run_jobs

from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.compose import compose_plain, validate
from speechlmm_train.run import run
from speechlmm_train.trainer.checks import freeze_for
from speechlmm_train.trainer.initial_model import build_model
from speechlmm_train.trainer.stage_data import open_stages

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

STEPS = 6
TINY = (
    "model/audio_encoder=tiny_whisper_unrestricted",
    "model/audio_adapter=tiny_mlp",
    "model/text_decoder=tiny_llama",
    "model.objectives={lm: {type: next_token}, ctc: {type: ctc, weight: 0.3}}",
    "training.report_to=[]",
    "training.logging_steps=1",
    "training.per_device_train_batch_size=1",
    "training.micro_batches_per_step=4",
    f"training.max_steps={STEPS}",
    "training.learning_rate=1e-3",
    "training.lr_scheduler_type=constant",
    "training.save_steps=null",
    "training.preflight=false",
)
MODES = ("ddp", "zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "fsdp2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six clips, and six texts, one example a micro-batch: some processes have audio where others have none."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    speech, text = [], []
    for i in range(6):
        soundfile.write(root / f"{i}.wav", generator.normal(0, 0.1, 6_000 + 1_000 * i).astype("float32"), 16_000)
        speech.append({"audio": f"{i}.wav", "text": f"word {'abcdef'[i]}", "task": "asr"})
        text.append({"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": f"{i} one"}]})
    for name, lines in {"speech": speech, "text": text, "mixed": [*speech, *text]}.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def plain_of(data, name, *overrides, manifest="mixed"):
    own = (f"data.train=[{data / manifest}.jsonl]", f"training.output_dir={data / name}")
    return compose_plain("pretrain", [*TINY, *own, *overrides])


STAGES = (
    "stages=[{name: a, max_steps: 2, trainable_modules: [audio_adapter]}, {name: b, max_steps: 2}]",
    "training.max_steps=null",
)
DROPOUT = (
    "model.audio_encoder.model.dropout=0.2",
    "model.text_decoder.model.attention_dropout=0.2",
    "training.max_steps=3",
)


@pytest.fixture(scope="module")
def jobs(data):
    """What two processes do, one after the other."""
    found = {mode: plain_of(data, mode, f"training.parallel={mode}") for mode in MODES}
    for mode in ("ddp", "zero3", "fsdp2"):
        found[f"{mode}-stages"] = plain_of(data, f"{mode}-stages", f"training.parallel={mode}", *STAGES)
    found["ddp-dropout"] = plain_of(data, "ddp-dropout", *DROPOUT, manifest="speech")
    found["ddp-dropout-mixed"] = plain_of(data, "ddp-dropout-mixed", *DROPOUT)
    found["ddp-text"] = plain_of(data, "ddp-text", "training.max_steps=2", manifest="text")
    for mode in ("ddp", "zero2", "fsdp2"):
        settings = (f"training.parallel={mode}", "training.bf16=true", "training.max_steps=2")
        found[f"{mode}-bf16"] = plain_of(data, f"{mode}-bf16", *settings)
    return found


@pytest.fixture(scope="module")
def two(data, jobs, run_script):
    """The output folders of what two processes did."""
    run_jobs(run_script, RUN_EACH, data, jobs)
    return data


def figures(out, key):
    return [row[key] for row in rows(out)]


def one_process(data, name, *overrides, manifest="mixed"):
    plain = plain_of(data, name, *overrides, manifest=manifest)
    run(validate(plain), plain=plain, base=data, progress=False)
    return data / name


@pytest.fixture(scope="module")
def naive(data):
    """Losses, gradient norms and final weights of a plain loop: summed losses over global counts, then AdamW."""
    config = validate(plain_of(data, "naive"))
    processor = SpeechLMMProcessor.from_config(config.model)
    (stage,) = open_stages(config, processor, base=data, world_size=1)
    model = build_model(config, None)
    freeze_for(model, stage.settings)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    steps = stage.batches(0, rank=0).steps()
    losses, norms, by_name = [], [], []
    for _ in range(STEPS):
        batches = next(steps)
        units = {unit: sum(batch["num_items"][unit] for batch in batches) for unit in batches[0]["num_items"]}
        means = {"lm": torch.tensor(0.0), "ctc": torch.tensor(0.0)}
        for batch in batches:
            output = model(**{key: value for key, value in batch.items() if key != "origin"})
            for name, loss in output.losses.items():
                means[name] = means[name] + loss.sum / max(units[loss.unit], 1)
        total = means["lm"] + 0.3 * means["ctc"]
        total.backward()
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        losses.append(total.item())
        by_name.append({name: mean.item() for name, mean in means.items()})
        norms.append(torch.nn.utils.clip_grad_norm_(trained, 1.0).item())
        optimiser.step()
        optimiser.zero_grad()
    return losses, norms, by_name, {name: value.detach() for name, value in model.state_dict().items()}


def check(out, naive):
    losses, norms, by_name, weights = naive
    assert figures(out, "train/loss") == pytest.approx(losses, rel=1e-5)
    assert figures(out, "train/grad_norm") == pytest.approx(norms, rel=1e-5)
    assert figures(out, "train/lm") == pytest.approx([one["lm"] for one in by_name], rel=1e-5)
    own = load_file(out / "model" / "model.safetensors")
    for name, value in own.items():
        assert torch.allclose(value, weights[name], atol=2e-4, rtol=1e-3), name


def test_one_process(data, naive):
    check(one_process(data, "one"), naive)


@pytest.mark.parametrize("mode", MODES)
def test_two_processes(two, naive, mode):
    check(two / mode, naive)


def test_only_one_process_writes(two):
    """Rows that two processes had written would stand there twice."""
    assert [row["step"] for row in rows(two / "ddp")] == list(range(1, STEPS + 1))


def test_every_micro_batch_has_its_own_dropout_on_whichever_process(two):
    one = one_process(two, "one-dropout", *DROPOUT, manifest="speech")
    without = one_process(two, "without", "training.max_steps=3", manifest="speech")
    losses = figures(one, "train/loss")
    assert figures(two / "ddp-dropout", "train/loss") == pytest.approx(losses, rel=1e-5)
    assert figures(without, "train/loss") != pytest.approx(losses, rel=1e-3)


def test_a_medium_that_fills_up_a_micro_batch_changes_no_dropout(two):
    """Its encoder draws as well, and its row of the decoder's, on however many processes."""
    one = one_process(two, "one-dropout-mixed", *DROPOUT)
    for name in ("train/loss", "train/grad_norm"):
        assert figures(two / "ddp-dropout-mixed", name) == pytest.approx(figures(one, name), rel=1e-5), name


def test_stages_that_train_different_parts(two):
    one = one_process(two, "one-stages", *STAGES)
    expected = load_file(one / "model" / "model.safetensors")
    for mode in ("ddp", "zero3", "fsdp2"):
        out = two / f"{mode}-stages"
        assert figures(out, "train/loss") == pytest.approx(figures(one, "train/loss"), rel=1e-5), mode
        own = load_file(out / "model" / "model.safetensors")
        assert own.keys() == expected.keys()
        assert all(torch.allclose(own[name], expected[name], atol=2e-4, rtol=1e-3) for name in own), mode


def test_text_alone_leaves_the_towers_as_they_are(two):
    """Not even weight decay, and nobody waits for a gradient of them."""
    start = build_model(validate(plain_of(two, "start")), None).state_dict()
    end = load_file(two / "ddp-text" / "model" / "model.safetensors")
    assert all(torch.equal(end[name], start[name]) for name in end if name.startswith("audio_"))
    assert any(not torch.equal(end[name], start[name]) for name in end if name.startswith("text_decoder"))


def test_mixed_precision(two, naive):
    for mode in ("ddp", "zero2", "fsdp2"):
        assert figures(two / f"{mode}-bf16", "train/loss") == pytest.approx(naive[0][:2], rel=2e-2), mode
        own = load_file(two / f"{mode}-bf16" / "model" / "model.safetensors")
        assert {value.dtype for value in own.values() if value.is_floating_point()} == {torch.float32}, mode


def test_four_processes(data, naive, run_script):
    """One micro-batch each: every step has processes with audio, and such with none."""
    (data / "four.json").write_text(json.dumps(plain_of(data, "four")))
    done = run_script(RUN_EACH, data / "four.json", processes=4, timeout=500)
    assert done.code == 0, done.err[-6000:]
    check(data / "four", naive)
