"""Runs of several stages, mixed data and schedules, and what a resumed run may change."""

import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny_runs import rows

from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.model.describe import meta_model
from speechlmm_train.compose import compose_config, compose_plain, validate
from speechlmm_train.run import run
from speechlmm_train.trainer.checks import check_stage
from speechlmm_train.trainer.guarded_save import guarded_save

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = (
    "model/audio_encoder=tiny_whisper_unrestricted",
    "model/audio_adapter=tiny_mlp",
    "model/text_decoder=tiny_llama",
    "model.objectives={lm: {type: next_token}, ctc: {type: ctc}}",
)
CTC_FIRST = "{lm: [[0, 0], [0.5, 0], [1, 1]], ctc: 1}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Manifests of four clips, of four texts, and of both."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    speech, text = [], []
    for i in range(4):
        soundfile.write(root / f"{i}.wav", generator.normal(0, 0.1, 8_000).astype("float32"), 16_000)
        speech.append({"audio": f"{i}.wav", "text": f"word {i}", "task": "asr"})
        text.append({"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": f"{i} one"}]})
    for name, lines in {"speech": speech, "text": text, "mixed": [*speech, *text]}.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def go(data, out, *overrides, manifest="speech", resume=False, groups=None, last_groups=None):
    """Trains; learning rates of parts are given apart, since an override's keys may hold no `*`."""
    plain = compose_plain(
        "pretrain",
        [
            *TINY,
            f"data.train=[{data / manifest}.jsonl]",
            f"training.output_dir={out}",
            "training.report_to=[]",
            "training.logging_steps=1",
            "training.per_device_train_batch_size=1",
            *overrides,
        ],
    )
    plain["training"]["lr_groups"] = groups or {}
    if last_groups is not None:
        plain["stages"][-1]["lr_groups"] = last_groups
    return run(validate(plain), plain=plain, resume=resume, progress=False)


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def test_text_and_speech_mixed_while_the_language_models_loss_has_no_weight(data, tmp_path):
    """One example a micro-batch: half of them hold text alone, from which CTC cannot learn."""
    out = tmp_path / "out"
    stage = f"stages=[{{name: a, max_steps: 16, objectives: {CTC_FIRST}}}]"
    go(data, out, stage, manifest="mixed")
    losses = rows(out)
    early = [row for row in losses if row["step"] <= 8]
    idle = [row for row in early if row["train/loss"] == 0]
    assert 0 < len(idle) < len(early)
    assert all("train/ctc" not in row and row["train/grad_norm"] == 0 for row in idle)
    assert all(row["train/loss"] > 0 for row in losses if row["step"] > 9)


def test_a_stage_that_cannot_learn_from_its_data(data, tmp_path):
    stages = "stages=[{name: s, max_steps: 1}, {name: t, max_steps: 1, objectives: {lm: 0}, data: {train: ["
    with pytest.raises(ConfigError, match=r"stage 't': its data are text alone, .* \(ctc\)"):
        go(data, tmp_path / "out", f"{stages}{data / 'text'}.jsonl]}}}}]")
    with pytest.raises(ConfigError, match="stage 'b': the weight of every objective is zero"):
        go(data, tmp_path / "out", "stages=[{name: b, max_steps: 1, objectives: {lm: 0, ctc: [[0, 0], [1, 0]]}}]")
    assert not (tmp_path / "out").exists()


def test_learning_rates_of_parts_by_stage(data, tmp_path):
    """The run's group holds where its part is trained and is passed over where it is frozen; globs match modules."""
    out, still = tmp_path / "out", tmp_path / "still"
    stages = "stages=[{name: a, max_steps: 1, trainable_modules: [text_decoder]}, {name: b, max_steps: 1}]"
    common = ("training.save_steps=1", "training.weight_decay=0.1", "training.warmup_steps=0")
    own = {"text_decoder.model.*.layers": 0.0, "audio_encoder": 1e-3}
    go(data, out, stages, *common, groups={"*_encoder": 0.0, "audio_adapter": 0.0}, last_groups=own)
    after_a = load_file(out / "checkpoint-1" / "model.safetensors")
    final = weights(out)
    for name, tensor in final.items():
        moved = not torch.equal(tensor, after_a[name])
        if ".layers." in name and name.startswith("text_decoder"):
            assert not moved, name
    assert any(name.startswith("audio_encoder") and not torch.equal(final[name], after_a[name]) for name in final)
    assert any(name.startswith("audio_adapter") and not torch.equal(final[name], after_a[name]) for name in final)
    go(data, still, "training.max_steps=1", *common, groups={"audio_*": 0.0})
    go(data, tmp_path / "one", "training.max_steps=1", *common)
    reference = weights(tmp_path / "one")
    for name, tensor in weights(still).items():
        if not name.startswith("audio_"):
            assert torch.equal(tensor, reference[name]), name
        elif tensor.is_floating_point() and tensor.ndim > 1:
            assert not torch.equal(tensor, reference[name]) or "positions" in name, name


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (
            "{name: b, max_steps: 1, lr_groups: {text_decoder.modle: 1}}",
            "stage 'b': .* 'text_decoder.modle' matches no",
        ),
        (
            "{name: b, max_steps: 1, trainable_modules: [text_decoder], lr_groups: {audio_encoder: 1}}",
            "stage 'b': .* nothing is trained in 'audio_encoder'",
        ),
        ("{name: b, max_steps: 1, lr_scheduler_type: cosin}", "cosin"),
        ("{name: b, max_steps: 1, trainable_modules: [text_decoder.modle]}", "matches no module"),
    ],
)
def test_a_later_stage_is_checked_before_the_first_is_trained(data, tmp_path, stages, expected):
    with pytest.raises(ConfigError, match=expected):
        go(data, tmp_path / "out", f"stages=[{{name: a, max_steps: 1}}, {stages}]")
    assert not (tmp_path / "out").exists()


def test_a_finished_run_goes_on_for_more_steps(data, tmp_path):
    """With a constant rate, 2 and then 4 steps are 4 steps."""
    constant = ("training.lr_scheduler_type=constant", "training.warmup_steps=0", "training.save_steps=2")
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert go(data, out, *constant, "training.max_steps=2").steps == 2
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="holds the state of AdamW, and this run trains with SGD"):
        go(data, out, *constant, "training.max_steps=4", "training.optim=sgd", resume=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == kept
    assert go(data, out, *constant, "training.max_steps=4", resume=True).steps == 4
    go(data, whole, *constant, "training.max_steps=4")
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, weights(whole)[name]), name
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4]
    assert go(data, out, *constant, "training.max_steps=4", resume=True).steps == 4  # nothing left to do
    assert go(data, out, *constant, "training.max_steps=4", "training.logging_steps=2", resume=True).steps == 4
    kept = (out / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"is finished, .*begun with training.weight_decay .*, asked for 0.3; give"):
        go(data, out, *constant, "training.max_steps=4", "training.weight_decay=0.3", resume=True)
    assert (out / "config.yaml").read_bytes() == kept
    with pytest.raises(ConfigError, match="has done 4 steps, and 3 are asked for"):
        go(data, out, *constant, "training.max_steps=3", resume=True)
    with pytest.raises(ConfigError, match="begun with seed 0, and this one has seed 7"):
        go(data, out, *constant, "training.max_steps=4", "training.seed=7", resume=True)


def test_a_finished_run_without_checkpoints_cannot_go_on(data, tmp_path):
    go(data, tmp_path / "out", "training.max_steps=1", "training.save_steps=null")
    with pytest.raises(ConfigError, match="left no checkpoint to go on from"):
        go(data, tmp_path / "out", "training.max_steps=2", "training.save_steps=null", resume=True)


def test_stages_that_are_over_keep_their_steps(data, tmp_path):
    def stages(first, second):
        return f"stages=[{{name: a, max_steps: {first}}}, {{name: b, max_steps: {second}}}]"

    go(data, tmp_path / "out", stages(1, 1))
    with pytest.raises(ConfigError, match=r"the stages before 'b' took 1 steps .* and are 2 now"):
        go(data, tmp_path / "out", stages(2, 1), resume=True)
    assert go(data, tmp_path / "out", stages(1, 2), resume=True).steps == 3


def test_weights_are_read_once_on_resume(data, tmp_path, monkeypatch):
    import speechlmm_core.checkpoint.load as module

    out = tmp_path / "out"
    go(data, out, "training.max_steps=1")
    read, load = [], module._load_tensors
    monkeypatch.setattr(
        module, "_load_tensors", lambda model, folder, *a, **k: read.append(folder) or load(model, folder, *a, **k)
    )
    go(data, out, "training.max_steps=2", resume=True)
    assert [folder.name for folder in read] == ["checkpoint-1"]


def test_evaluation_while_training(data, tmp_path):
    out = tmp_path / "out"
    given = (f"data.eval=[{data / 'speech.jsonl'}]", "training.eval_steps=2", "training.eval_samples=2")
    stages = f"stages=[{{name: t, max_steps: 1, data: {{train: [{data / 'text'}.jsonl]}}}}, {{name: s, max_steps: 4}}]"
    go(data, out, *given, "training.eval_max_new_tokens=2", stages)
    scored = [row["step"] for row in rows(out) if "eval/asr_wer" in row]
    assert scored == [3, 5]
    files = {path.name: path.read_text().splitlines() for path in (out / "evaluations").iterdir()}
    assert {name: len(lines) for name, lines in files.items()} == {"step-3.jsonl": 2, "step-5.jsonl": 2}


def test_only_faults_of_writing_are_called_a_full_disk(tmp_path):
    with pytest.raises(CheckpointError, match="free some space"), guarded_save(tmp_path):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    with pytest.raises(torch.OutOfMemoryError), guarded_save(tmp_path):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_finetune_keeps_the_encoder(data, tmp_path):
    go(data, tmp_path / "first", "training.max_steps=1")
    composed = compose_config(
        "finetune",
        [
            *TINY,
            f"data.train=[{data / 'speech.jsonl'}]",
            f"training.output_dir={tmp_path / 'second'}",
            f"training.pretrained_checkpoint={tmp_path / 'first'}",
            "training.max_steps=1",
            "training.warmup_steps=0",
            "training.report_to=[]",
        ],
    )
    run(composed.config, plain=composed.plain, progress=False)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    changed = {name.split("_")[0] for name in after if not torch.equal(after[name], before[name])}
    assert "text" in changed
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("audio_encoder"))


@pytest.mark.parametrize(
    ("config_name", "setting", "frozen"),
    [
        ("pretrain", ["training_setting=adapter_only"], False),
        ("finetune", ["training.pretrained_checkpoint=before"], False),
        ("pretrain", ["training.freeze_modules=[audio_encoder]"], True),
        ("pretrain", ["stages=[{name: all, max_steps: 1, trainable_modules: [audio_adapter]}]"], True),
        (
            "pretrain",
            ["stages=[{name: a, max_steps: 1}, {name: b, max_steps: 1, freeze_modules: [audio_encoder]}]"],
            False,
        ),
    ],
)
def test_the_weights_of_an_encoder_s_layers_are_trained_or_it_is_said(config_name, setting, frozen, data, caplog):
    given = [
        *TINY,
        "+model.audio_encoder.layer=weighted",
        f"data.train=[{data / 'speech.jsonl'}]",
        "training.output_dir=out",
        "training.report_to=[]",
        *([] if "stages" in str(setting) else ["training.max_steps=1"]),
        *setting,
    ]
    config = compose_config(config_name, given).config
    model = meta_model(config.model)
    for number, stage in enumerate(config.resolved_stages()):
        check_stage(model, stage, max_steps=1, world_size=1)
        weights = model.get_parameter("audio_encoder.layer_mix.weights")
        assert weights.requires_grad == (not frozen and number == 0)
    said = "freezes audio_encoder.layer_mix.weights, which nothing has trained; freeze 'audio_encoder.model'"
    assert (said in caplog.text) == frozen
