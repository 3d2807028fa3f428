"""Training with adapters: on what is frozen, on what was fine-tuned, in 4 bits, resumed, served, and merged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.lora.parameters import matrices
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_serve.cli.main import main as serve_main
from speechlmm_train.cli.main import main
from speechlmm_train.compose import validate
from speechlmm_train.run import build_model, run
from speechlmm_train.trainer.checks import freeze_for

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16_000
DECODER = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
VOCABULARY = 300
LORA = [
    {"name": "decoder", "target_module": "text_decoder.model", "task_type": "CAUSAL_LM", "r": 4, "use_rslora": True},
    {"name": "encoder", "target_module": "audio_encoder.model", "r": 2, "lora_dropout": 0.1, "bias": "all"},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Tones with transcripts, and a language model's own checkpoint."""
    folder = tmp_path_factory.mktemp("lora")
    lines = []
    for number in range(8):
        tone = 0.1 * np.sin(np.arange(RATE // 4 + 400 * number) * 0.05 * (number + 1))
        soundfile.write(folder / f"{number}.flac", tone.astype("float32"), RATE)
        lines.append({"audio": f"{number}.flac", "text": f"tone {number}", "task": "asr", "language": "en"})
    (folder / "speech.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.manual_seed(3)
    numbers = {key: value for key, value in DECODER.items() if key != "model_type"}
    LlamaForCausalLM(LlamaConfig(**numbers, vocab_size=VOCABULARY)).save_pretrained(folder / "llama")
    return folder


def plain(root, out, *, base=True, stages=None, **training):
    sizes = {"num_mel_bins": 16, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
    encoder = {**sizes, "encoder_ffn_dim": 64, "max_source_positions": 200, "dropout": 0.1}
    decoder = {"type": "causal_lm", "tokenizer": "bytes", "chat_template": "chatml"}
    decoder |= {"pretrained": str(root / "llama")} if base else {"model": {**DECODER, "vocab_size": VOCABULARY}}
    return {
        "model": {
            "audio_encoder": {"type": "whisper_unrestricted", "model": encoder},
            "audio_adapter": {"type": "mlp", "stack": 2, "num_layers": 1},
            "text_decoder": decoder,
        },
        "data": {"train": [str(root / "speech.jsonl")]},
        "training": {
            "output_dir": str(out),
            "learning_rate": 3e-3,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_steps": None,
            "report_to": [],
            "freeze_modules": ["audio_encoder", "text_decoder"],
            "max_steps": 2,
            **training,
        },
        "stages": stages or [],
    }


def go(config, **options):
    return run(validate(config), plain=config, progress=False, **options)


def weights(out):
    return load_file(Path(out) / "model" / "model.safetensors")


def adapter_weights(out, name):
    return load_file(Path(out) / "model" / "adapters" / name / "adapter_model.safetensors")


def call(capsys, *argv, program=main):
    with pytest.raises(SystemExit) as caught:
        program([str(part) for part in argv])
    out, err = capsys.readouterr()
    return caught.value.code, out, err


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A training of two adapters beside a module that is trained whole, with checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "out"
    go(plain(root, out, lora_adapters=LORA, max_steps=6, save_steps=3, learning_rate=1e-2))
    return out


def test_the_loss_falls_and_only_adapters_and_what_is_trained_whole_change(trained, root):
    losses = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/lm"] for row in losses if "train/lm" in row]
    assert losses[-1] < losses[0] - 0.1
    before = build_model(validate(plain(root, "unused")), None).state_dict()
    after = weights(trained)
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    biases = {name for name in before if name.startswith("audio_encoder.") and name.endswith(".bias")}
    assert changed == {name for name in before if name.startswith("audio_adapter.")} | biases
    for one in LORA:
        grown = adapter_weights(trained, one["name"])
        assert all(value.any() for value in grown.values() if value.dim() == 2)


def test_what_is_held_has_no_state_in_the_optimiser(trained):
    kept = set()
    for file in (trained / "checkpoint-6").rglob("*.safetensors"):
        if "optimizer" in str(file.relative_to(trained)):
            with safe_open(file, framework="pt") as tensors:
                kept |= set(tensors.keys())
    assert kept
    assert any("lora_A.decoder" in name for name in kept)
    held = [name for name in kept if "text_decoder" in name and "lora_" not in name]
    assert not held


def test_a_resumed_run_ends_with_the_same_adapters(trained, root, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained, out, symlinks=True)
    for name in ("checkpoint-6", "model"):
        shutil.rmtree(out / name)
    report = next(path for path in out.iterdir() if path.suffix == ".json" and "planned_steps" in path.read_text())
    report.unlink()
    config = plain(root, trained, lora_adapters=LORA, max_steps=6, save_steps=3, learning_rate=1e-2)
    config["training"]["output_dir"] = str(out)
    written = out / "config.yaml"
    written.write_text(written.read_text().replace(str(trained), str(out)))
    go(config, resume=True)
    for name, value in weights(trained).items():
        assert torch.equal(weights(out)[name], value), name
    for one in LORA:
        mine = adapter_weights(out, one["name"])
        assert all(torch.equal(mine[key], value) for key, value in adapter_weights(trained, one["name"]).items())


def test_merged_it_answers_the_same(trained, root, tmp_path, capsys):
    code, text, err = call(capsys, "merge-lora", trained, tmp_path / "plain")
    assert (code, err) == (0, "")
    assert "merged decoder, encoder; the plain model (float32) is in" in text
    assert not (tmp_path / "plain" / "adapters").exists()
    one, other = SpeechLMM.from_pretrained(trained), SpeechLMM.from_pretrained(tmp_path / "plain")
    assert not other.lora_adapters
    for name, values in {"ids": torch.arange(12)[None], "more": torch.arange(100, 140)[None]}.items():
        with torch.no_grad():
            left, right = (model.text_decoder.model(values).logits for model in (one, other))
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5, msg=name)
    answers = []
    for path in (trained, tmp_path / "plain"):
        arguments = ("--audios-file-path", root / "3.flac", "--max-new-tokens", 5, "--no-progress")
        code, text, err = call(capsys, "infer", "--model-path", path, *arguments, program=serve_main)
        assert code == 0, err
        answers.append(json.loads(text.splitlines()[0])["text"])
    assert answers[0] == answers[1]
    assert answers[0]
    code, _, err = call(capsys, "merge-lora", trained, tmp_path / "plain")
    assert code == 2
    assert "is not empty; replace it with --overwrite" in err
    (tmp_path / "plain" / "README.md").write_text("mine")
    (tmp_path / "plain" / "averaged.json").write_text("of what was there")
    code, _, err = call(capsys, "merge-lora", trained, tmp_path / "plain", "--overwrite", "--dtype", "bfloat16")
    assert (code, err) == (0, "")
    assert (tmp_path / "plain" / "README.md").read_text() == "mine"
    assert not (tmp_path / "plain" / "averaged.json").exists()
    assert SpeechLMM.from_pretrained(tmp_path / "plain").dtype == torch.bfloat16
    code, _, err = call(capsys, "merge-lora", tmp_path / "plain", tmp_path / "again")
    assert code == 2
    assert "has no adapters to merge" in err


@pytest.fixture(scope="module")
def tuned(root, tmp_path_factory):
    """A fine-tuned model: every weight differs from its base's."""
    out = tmp_path_factory.mktemp("runs") / "tuned"
    go(plain(root, out, freeze_modules=[], max_steps=1, learning_rate=1e-2))
    return out


@pytest.mark.parametrize("save", ["full", "trainable"])
def test_adapters_on_a_fine_tuned_checkpoint_keep_its_weights(tuned, root, tmp_path, save):
    """The first SpeechLMM loaded the original base again."""
    out = tmp_path / "out"
    frozen = ["audio_encoder", "audio_adapter", "text_decoder"]
    config = plain(
        root, out, pretrained_checkpoint=str(tuned), lora_adapters=LORA[:1], freeze_modules=frozen, save=save
    )
    go(config)
    expected, loaded = weights(tuned), SpeechLMM.from_pretrained(out)
    base = load_file(root / "llama" / "model.safetensors")
    assert any(not torch.equal(value, expected[f"text_decoder.model.{key}"]) for key, value in base.items())
    own = {key.replace(".base_layer", ""): value for key, value in loaded.state_dict().items() if "lora_" not in key}
    assert own.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in own.items())


def test_adapters_of_a_checkpoint_go_on_or_stay(trained, root, tmp_path):
    source = {"pretrained_checkpoint": str(trained)}
    out = tmp_path / "out"
    named = [LORA[0], {**LORA[0], "name": "second"}]
    go(plain(root, out, **source, lora_adapters=named, freeze_modules=[], max_steps=1))
    before, after = adapter_weights(trained, "decoder"), adapter_weights(out, "decoder")
    assert any(not torch.equal(value, before[key]) for key, value in after.items())
    before, after = adapter_weights(trained, "encoder"), adapter_weights(out, "encoder")
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert {one.name for one in SpeechLMM.from_pretrained(out).lora_adapters} == {"decoder", "encoder", "second"}
    before, after = weights(trained), weights(out)
    beneath = ("audio_encoder.", "text_decoder.")
    assert all(torch.equal(value, after[key]) for key, value in before.items() if key.startswith(beneath))
    assert any(not torch.equal(value, after[key]) for key, value in before.items() if key.startswith("audio_adapter."))
    other = [{**LORA[0], "r": 8}]
    with pytest.raises(ConfigError, match=r"'decoder' already, with r 4 there and 8 here;.* merge-lora"):
        build_model(validate(plain(root, out, **source, lora_adapters=other)), None)


def test_a_run_goes_on_with_the_adapters_and_the_frozen_parts_that_it_was_begun_with(root, tmp_path):
    """Without its adapter, what lay beneath was trained, and the adapter's state lost; the other way round as well."""
    for out, begun, others in (
        (
            tmp_path / "with",
            {"lora_adapters": LORA[:1], "freeze_modules": ["audio_encoder"]},
            [
                ({"lora_adapters": []}, r"begun with training.lora_adapters decoder, asked for \(none\)"),
                ({"lora_adapters": LORA}, "begun with training.lora_adapters decoder, asked for decoder, encoder"),
                ({"lora_adapters": [{**LORA[0], "r": 8}]}, "begun with training.lora_adapters decoder with other fi"),
                ({"load_in_8bit": True, "save": "trainable"}, "begun with training.load_in_8bit=false"),
                (
                    {"freeze_modules": ["audio_encoder", "audio_adapter"]},
                    r"freeze_modules \[audio_encoder\], asked for freeze_modules \[audio_adapter, audio_encoder\]",
                ),
            ],
        ),
        (tmp_path / "without", {}, [({"lora_adapters": LORA[:1]}, r"lora_adapters \(none\), asked for decoder")]),
    ):
        go(plain(root, out, **begun, max_steps=1, save_steps=1))
        kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for other, fault in others:
            with pytest.raises(ConfigError, match=fault):
                go(plain(root, out, **{**begun, **other}, max_steps=2, save_steps=1), resume=True)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == kept
    more = [{"lora_dropout": 0, **LORA[0]}]  # a default that is written out
    go(plain(root, tmp_path / "with", lora_adapters=more, freeze_modules=["audio_encoder"], max_steps=2), resume=True)


def test_what_lies_beneath_an_adapter_that_stays_cannot_be_trained(trained, root, tmp_path):
    stages = [{"name": "one", "max_steps": 1, "trainable_modules": ["text_decoder"]}]
    config = plain(root, tmp_path / "out", pretrained_checkpoint=str(trained), stages=stages)
    del config["training"]["max_steps"]
    with pytest.raises(ConfigError, match=r"trains nothing; .* in training.lora_adapters \(there: decoder, encoder\)"):
        go(config)


def test_save_trainable_holds_what_was_trained_and_the_adapters(root, tmp_path):
    config = plain(root, tmp_path / "out", lora_adapters=LORA[:1], save="trainable")
    go(config)
    names = set(weights(tmp_path / "out"))
    assert not any(name.startswith("text_decoder") for name in names)
    base = load_file(root / "llama" / "model.safetensors")
    loaded = SpeechLMM.from_pretrained(tmp_path / "out")
    own = {key.replace(".base_layer", ""): value for key, value in loaded.state_dict().items() if "lora_" not in key}
    assert all(torch.equal(own[f"text_decoder.model.{key}"], value) for key, value in base.items())
    again = plain(root, tmp_path / "two", pretrained_checkpoint=str(tmp_path / "out"), save="trainable")
    model = build_model(validate(again), None)
    assert model.base_sources.keys() == {"text_decoder"}
    assert [one.name for one in model.lora_adapters] == ["decoder"]
    assert model.frozen_adapters == {"decoder"}


def test_stages_change_what_is_trained_and_keep_all_of_it(root, tmp_path):
    stages = [
        {"name": "one", "max_steps": 2, "trainable_modules": ["audio_adapter"]},
        {"name": "two", "max_steps": 2, "trainable_modules": ["text_decoder"], "lr_groups": {"*.lora_B.*": 1e-2}},
    ]
    config = plain(root, tmp_path / "out", lora_adapters=LORA[:1], stages=stages, save_steps=2)
    del config["training"]["max_steps"]
    go(config)
    first, last = (tmp_path / "out" / name / "adapters" / "decoder" for name in ("checkpoint-2", "model"))
    first, last = (load_file(folder / "adapter_model.safetensors") for folder in (first, last))
    assert not any(value.any() for key, value in first.items() if "lora_B" in key)
    assert all(value.any() for key, value in last.items() if "lora_B" in key)
    middle = load_file(tmp_path / "out" / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(value, middle[key]) for key, value in weights(tmp_path / "out").items())


def test_frozen_weights_of_a_checkpoint_are_its_own_and_stay_frozen(root, tmp_path):
    """The first SpeechLMM loaded the video encoder's base after freezing: the checkpoint's weights were lost."""
    from speechlmm_core.testing.presets import installed_presets

    video = {"video_encoder": installed_presets("video_encoder", "tiny_auto_avsr")["tiny_auto_avsr"]}
    video |= {"video_adapter": {"type": "mlp", "num_layers": 1}}

    def config(**training):
        found = plain(root, tmp_path / "out", **training)
        found["model"] |= video
        return validate(found)

    model = build_model(config(), None)
    with torch.no_grad():
        for parameter in model.video_encoder.parameters():
            parameter.add_(0.25)
    model.save_pretrained(tmp_path / "first")
    ready = config(pretrained_checkpoint=str(tmp_path / "first"), freeze_modules=["video_encoder", "text_decoder"])
    loaded = build_model(ready, None)
    freeze_for(loaded, ready.resolved_stages()[0])
    loaded.train()
    expected = model.video_encoder.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.video_encoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.video_encoder.parameters())
    assert not any(module.training for module in loaded.video_encoder.modules())


def test_a_plan_shows_what_the_checkpoint_has_and_what_adapters_train(trained, root, tmp_path, capsys):
    import yaml

    config = plain(root, tmp_path / "out", pretrained_checkpoint=str(trained), lora_adapters=LORA)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text(yaml.safe_dump(config))
    code, text, err = call(capsys, "plan", "--config-name", "mine", "--config-dir", tmp_path / "conf")
    assert code == 0, err
    lines = text.splitlines()
    start = lines.index(f"weights of {trained / 'model'}")
    rows = {line.split()[0]: line.split()[1:] for line in lines[start + 2 : start + 5]}
    count = {name: sum(key.startswith(f"{name}.") for key in weights(trained)) for name in rows}
    assert rows == {name: [str(number), "-", "-"] for name, number in count.items()}
    assert "with the adapters decoder, encoder" in lines
    model = build_model(validate(config), None)
    own = dict(model.named_parameters())
    expected = sum(own[name].numel() for name, one in matrices(model).items() if one == "decoder")
    assert f"text_decoder {expected:,}" in text
    table = {
        line.split()[0]: line for line in lines if line.startswith(("audio_", "text_decoder")) and "Model" not in line
    }
    assert all(str(trained / "model") in row for row in table.values() if "Whisper" in row or "CausalLM" in row)
    code, _, err = call(capsys, "run", "--config-name", "mine", "--config-dir", tmp_path / "conf", "--no-progress")
    assert code == 0, err
    assert "with the adapters decoder, encoder" in err


def test_a_language_model_in_4_bits_keeps_its_weights_and_learns_by_its_adapter(root, tmp_path):
    pytest.importorskip("bitsandbytes")
    options = {"load_in_4bit": True, "save": "trainable", "lora_adapters": LORA[:1], "learning_rate": 1e-2}
    config = plain(root, tmp_path / "out", **options, max_steps=6, save_steps=3)
    go(config)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/lm"] for row in rows if "train/lm" in row]
    assert losses[-1] < losses[0] - 0.1
    assert not any(name.startswith("text_decoder") for name in weights(tmp_path / "out"))
    loaded = SpeechLMM.from_pretrained(tmp_path / "out")
    own = {key.replace(".base_layer", ""): value for key, value in loaded.state_dict().items() if "lora_" not in key}
    base = load_file(root / "llama" / "model.safetensors")
    assert all(torch.equal(own[f"text_decoder.model.{key}"], value) for key, value in base.items())
    assert all(value.any() for value in adapter_weights(tmp_path / "out", "decoder").values())
    # Resumed from the first checkpoint, it ends with the same adapter.
    before = adapter_weights(tmp_path / "out", "decoder")
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    shutil.rmtree(tmp_path / "out" / "model")
    for path in (tmp_path / "out").glob("*.json"):
        if "planned_steps" in path.read_text():
            path.unlink()
    go(config, resume=True)
    after = adapter_weights(tmp_path / "out", "decoder")
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize(
    ("training", "fault"),
    [
        ({"lora_adapters": [LORA[0], LORA[0]]}, "two adapters are called 'decoder'"),
        ({"lora_adapters": [LORA[0], {**LORA[0], "target_module": "text_decoder.model.model"}]}, "two adapters are"),
        ({"lora_adapters": [{"name": "x", "target_module": "text_decodr.model"}]}, "did you mean 'text_decoder'"),
        ({"lora_adapters": [{**LORA[0], "use_rslorra": True}]}, "did you mean 'use_rslora'"),
        ({"load_in_4bit": True}, "set training.save=trainable"),
        ({"load_in_4bit": True, "load_in_8bit": True, "save": "trainable"}, "either load_in_4bit or load_in_8bit"),
        ({"load_in_8bit": True, "save": "trainable", "base": False}, "set model.text_decoder.pretrained"),
        ({"load_in_8bit": True, "save": "trainable", "parallel": "fsdp2"}, "cannot be spread over processes"),
    ],
)
def test_faults_of_the_configuration(root, training, fault):
    base = training.pop("base", True)
    with pytest.raises((ValidationError, ConfigError), match=fault):
        validate(plain(root, "out", base=base, **training))


def test_a_target_that_does_not_exist_is_told_before_anything_is_written(root, tmp_path):
    adapter = {**LORA[0], "target_module": "text_decoder.model.modl"}
    with pytest.raises(ConfigError, match=r"no module 'text_decoder.model.modl'; did you mean"):
        go(plain(root, tmp_path / "out", lora_adapters=[adapter]))
    assert not (tmp_path / "out").exists()


def test_quantised_weights_of_a_fine_tuned_checkpoint_are_refused(tuned, root, tmp_path):
    pytest.importorskip("bitsandbytes")
    options = {"load_in_4bit": True, "save": "trainable", "lora_adapters": LORA[:1]}
    with pytest.raises(ConfigError, match="pretrained_checkpoint holds the language model's own"):
        build_model(validate(plain(root, tmp_path / "out", pretrained_checkpoint=str(tuned), **options)), None)


def test_a_quantised_run_that_trains_biases_goes_on(root, tmp_path):
    """Only weights are quantised: biases, in and beside layers with adapters, are saved and come back."""
    numbers = {key: value for key, value in DECODER.items() if key != "model_type"}
    torch.manual_seed(3)
    base = Qwen2ForCausalLM(Qwen2Config(**{**numbers, "hidden_size": 64}, vocab_size=VOCABULARY))
    base.save_pretrained(tmp_path / "qwen")
    for targets in (["o_proj"], ["q_proj"]):
        out = tmp_path / targets[0]
        lora = [{"name": "d", "target_module": "text_decoder.model", "r": 2, "bias": "all", "target_modules": targets}]
        config = plain(root, out, lora_adapters=lora, load_in_4bit=True, save="trainable", preflight=False)
        config["training"]["lr_scheduler_type"] = "constant"
        config["model"]["text_decoder"]["pretrained"] = str(tmp_path / "qwen")
        go({**config, "training": {**config["training"], "save_steps": 2}})
        layer = "text_decoder.model.model.layers.0.self_attn"
        held = load_file(out / "checkpoint-2" / "model.safetensors")
        assert held[f"{layer}.q_proj.bias"].any()
        assert f"{layer}.o_proj.weight" not in held
        config["training"] |= {"max_steps": 3, "save_steps": 2, "resume_changed": True}
        assert go(config, resume=True).steps == 3
        resumed = load_file(out / "model" / "model.safetensors")
        assert not torch.equal(resumed[f"{layer}.q_proj.bias"], held[f"{layer}.q_proj.bias"])


def test_a_missing_component_is_told_unless_it_is_named(tuned, root, tmp_path):
    shutil.copytree(tuned / "model", tmp_path / "part")
    tensors = load_file(tmp_path / "part" / "model.safetensors")
    from safetensors.torch import save_file

    kept = {key: value for key, value in tensors.items() if not key.startswith("audio_adapter")}
    save_file(kept, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    options = {"pretrained_checkpoint": str(tmp_path / "part")}
    with pytest.raises(CheckpointError, match=r"nothing of audio_adapter.*new_components=\[audio_adapter\]"):
        build_model(validate(plain(root, tmp_path / "out", **options)), None)
    model = build_model(validate(plain(root, tmp_path / "out", **options, new_components=["audio_adapter"])), None)
    fresh = build_model(validate(plain(root, tmp_path / "out")), None).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, kept.get(key, fresh[key])), key
