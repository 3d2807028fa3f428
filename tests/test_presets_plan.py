"""Every preset that is installed composes and is planned as `speechlmm-train plan` does: no network, no weights."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from torch import distributed

from speechlmm_core.errors import ConfigError
from speechlmm_core.testing.presets import installed_presets, preset_files
from speechlmm_train.compose import compose_config
from speechlmm_train.composing.tree import SETTING, hydra_tree
from speechlmm_train.plan_table import component_table, stage_lines

PARTS = sorted(preset_files())
COMPANIONS = {
    "audio_encoder": "tiny_whisper_unrestricted",
    "audio_adapter": "tiny_mlp",
    "video_encoder": "tiny_auto_avsr",
    "video_adapter": "tiny_mlp",
    "text_decoder": "tiny_llama",
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a plan asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("PRETRAINED_COMPONENTS", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))


def plan(*overrides: str, **presets: str) -> dict[str, list[str]]:
    """The rows of the plan's table by component, as their cells."""
    given = [f"model/{part}={name}" for part, name in presets.items()]
    common = ("data.train=[x.jsonl]", "training.output_dir=x", "training.max_steps=1")
    config = compose_config("pretrain", [*given, *common, *overrides]).config
    head, *rows = component_table(config)
    assert head.split()[0] == "COMPONENT"
    return {cells[0]: cells for cells in (row.split() for row in rows)}


def with_companions(part: str) -> dict[str, str]:
    """The least that a model with this part needs beside it."""
    name = part.rpartition("_")[0]
    towers = (f"{name}_encoder", f"{name}_adapter") if part != "text_decoder" else ("audio_encoder", "audio_adapter")
    return {one: COMPANIONS[one] for one in (*towers, "text_decoder")}


def names(part: str) -> list[str]:
    """The presets of a part, but for the demo's, whose tokenizer is made with its corpus."""
    return sorted(name for name in preset_files()[part] if name != "demo")


def test_every_part_has_a_companion():
    assert set(PARTS) == set(COMPANIONS), "add a tiny preset for the new part"


@pytest.mark.parametrize(
    ("part", "name"),
    [(part, name) for part in ("audio_encoder", "video_encoder", "text_decoder") for name in names(part)],
)
def test_every_preset_is_planned(part, name):
    rows = plan(**{**with_companions(part), part: name})
    assert rows[part][-1] in ("sdpa", "eager")


def test_what_the_demo_s_decoder_leaves_open_is_asked_for():
    presets = {**with_companions("text_decoder"), "text_decoder": "demo"}
    open_keys = ("model.text_decoder.model.vocab_size", "model.text_decoder.tokenizer")
    with pytest.raises(ConfigError) as caught:
        plan(**presets)
    assert str(caught.value).splitlines() == [
        f"{key}: missing; the preset of model/text_decoder leaves it open, give it as {key}=<value>"
        for key in open_keys
    ]
    rows = plan("model.text_decoder.model.vocab_size=300", "model.text_decoder.tokenizer=bytes", **presets)
    assert rows["text_decoder"][-1] == "sdpa"


@pytest.mark.parametrize("name", names("audio_adapter"))
def test_every_adapter_is_planned_for_audio_and_for_video(name):
    presets = {"audio_adapter": name, "video_adapter": name}
    overrides = []
    if installed_presets("audio_adapter", name)[name]["type"] == "identity":
        overrides = ["model.text_decoder.model.hidden_size=32", "model.text_decoder.model.head_dim=8"]
    rows = plan(*overrides, **{**with_companions("audio_adapter"), **with_companions("video_adapter"), **presets})
    attends = any(kind in name for kind in ("former", "stack"))
    for part in presets:
        assert rows[part][-1] == ("sdpa" if attends else "-"), rows[part]


@pytest.mark.parametrize("name", names("audio_adapter"))
def test_video_adapters_are_the_audio_adapters(name):
    audio, video = (installed_presets(part, name).get(name) for part in ("audio_adapter", "video_adapter"))
    assert video is not None, f"no preset model/video_adapter={name}"
    assert audio is not None
    assert video["type"] == audio["type"]
    if name.startswith("tiny_"):
        assert video == audio


def test_the_attention_of_each_component_is_planned():
    presets = {**with_companions("audio_encoder"), **with_companions("video_encoder"), "audio_adapter": "tiny_qformer"}
    asked = "{audio_encoder: eager, text_decoder: eager, audio_adapter: flash_attention_2}"
    rows = plan(f"model.attn_implementation={asked}", **presets)
    assert rows["audio_encoder"][-1] == "eager"
    assert rows["text_decoder"][-1] == "eager"
    assert rows["audio_adapter"][-1] == "sdpa"
    assert rows["video_adapter"][-1] == "-"
    assert rows["objectives.lm"][-1] == "-"


with hydra_tree(None) as _tree:
    SETTINGS = [name for name in _tree.options(SETTING) if name != "demo"]
OWN = {"vsr_lrs2": ["model/video_encoder=auto_avsr", "model/video_adapter=mlp", "model/text_decoder=llama_3_8b"]}
README = ["model/audio_encoder=hubert", "model/audio_adapter=mlp", "model/text_decoder=llama_3_8b"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_planned(setting):
    """Nearly all of them are for ZeRO's stage 3, which a plan has no processes for."""
    given = [] if setting.startswith("speechlmm/") else OWN.get(setting, README)
    data = ["data.train=[x.jsonl]", "training.max_steps=7"] if setting == "adapter_only" else []
    config = compose_config("pretrain", [*given, *data, f"training_setting={setting}", "hydra/launcher=helios"]).config
    (line, *_) = stage_lines(config)
    stage = config.resolved_stages()[0]
    steps = "7 steps" if data else f"{config.training.num_epochs:g} epochs"
    assert line.startswith(f"stage train: {steps}, freezes {', '.join(stage.training.freeze_modules)} (")
    assert not distributed.is_initialized()


def test_a_plan_checks_what_it_leaves_to_the_processes():
    given = ["model/text_decoder=tiny_llama", "data.train=[x.jsonl]", "training.max_steps=1", "training.parallel=zero3"]
    config = compose_config("pretrain", [*given, "training.deepspeed_config=zero2"]).config
    with pytest.raises(ConfigError, match=r"deepspeed_config 'zero2': zero_optimization\.stage is 2, and training's "):
        list(stage_lines(config))
