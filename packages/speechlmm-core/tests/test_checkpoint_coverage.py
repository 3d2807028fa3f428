"""What a checkpoint has for a model that starts from it, component by component."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from speechlmm_core.checkpoint.coverage import cover, load_covered
from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.lora.config import LoraAdapterConfig
from speechlmm_core.lora.inject import inject
from speechlmm_core.model.describe import meta_model
from speechlmm_core.model.freezing import freeze, set_trainable
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.text_decoder.decoder import build_hf_config


@pytest.fixture
def saved(tiny_model, tiny_processor, tmp_path):
    save_model(tiny_model, tiny_processor, tmp_path / "model")
    return tmp_path / "model"


def change(folder, action):
    tensors = load_file(folder / "model.safetensors")
    action(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def changed(config, **parts):
    towers = config.model_dump(mode="json")
    for name, value in parts.items():
        towers[name] = {**towers.get(name, {}), **value} if isinstance(value, dict) else value
    return ModelConfig.model_validate({key: value for key, value in towers.items() if value is not None})


def fresh(config, seed=9):
    torch.manual_seed(seed)
    return SpeechLMM.from_model_config(config, load_base_weights=False)


def test_a_checkpoint_of_the_same_model_covers_all_of_it(saved, tiny_config, tiny_model):
    coverage = cover(meta_model(tiny_config), saved)
    tensors = load_file(saved / "model.safetensors")
    assert {name: len(part.loaded) for name, part in coverage.components.items()} == {
        name: sum(key.startswith(f"{name}.") for key in tensors)
        for name in ("audio_encoder", "audio_adapter", "speaker_encoder", "speaker_adapter", "text_decoder")
    } | {"objectives.ctc": 2}
    model = fresh(tiny_config)
    load_covered(model, cover(model, saved))
    assert all(torch.equal(value, tiny_model.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_table_counts_tensors(saved, tiny_config):
    model = meta_model(changed(tiny_config, speaker_encoder=None, speaker_adapter=None))
    lines = list(cover(model, saved, new_components=["audio_encoder"]).lines())
    assert lines[0] == f"weights of {saved}"
    assert lines[1].split() == ["COMPONENT", "LOADED", "NEW", "UNEXPECTED"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert rows["audio_encoder"] == ["2", "-", "-"]  # all of it is there, and fits
    assert rows["speaker_encoder"] == ["-", "-", "2", "not", "in", "this", "model"]


def test_what_would_start_at_random_is_refused_unless_it_is_named(saved, tiny_config):
    kept = change(saved, lambda all_: [all_.pop(key) for key in list(all_) if key.startswith("objectives.ctc")])
    model = fresh(tiny_config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fault = r"holds nothing of objectives.ctc, which would start at random; .*new_components=\[objectives.ctc\]"
    with pytest.raises(CheckpointError, match=fault):
        cover(model, saved)
    coverage = cover(model, saved, new_components=["objectives.*"])
    assert len(coverage.components["objectives.ctc"].new) == 2
    load_covered(model, coverage)
    for key, value in model.state_dict().items():
        assert torch.equal(value, kept.get(key, before[key])), key


@pytest.mark.parametrize(
    ("action", "fault"),
    [
        (
            lambda tensors: tensors.pop("audio_adapter.model.bias"),
            r"audio_adapter: it lacks 1 tensor \(audio_adapter.model.bias\); configure audio_adapter as it was trained",
        ),
        (
            lambda tensors: tensors.update({"audio_adapter.model.more": torch.zeros(1)}),
            r"audio_adapter: it has 1 tensor \(audio_adapter.model.more\), for which there is no place",
        ),
        (
            lambda tensors: tensors.update({"audio_adapter.model.bias": torch.zeros(7)}),
            r"audio_adapter.model.bias is \(7,\), expected \(32,\)",
        ),
        (
            lambda tensors: tensors.update({"text_decoder.model.model.embed_tokens.weight": torch.zeros(200, 32)}),
            r"its vocabulary has 200 rows and the model's 300: take the tokenizer and the vocab_size",
        ),
    ],
)
def test_components_that_both_have_must_fit(saved, tiny_config, action, fault):
    change(saved, action)
    with pytest.raises(CheckpointError, match=fault):
        cover(meta_model(tiny_config), saved)


def test_all_faults_are_told_at_once(saved, tiny_config):
    with pytest.raises(CheckpointError) as caught:
        cover(meta_model(changed(tiny_config, audio_encoder={"width": 20}, speaker_encoder={"width": 8})), saved)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert [name for name in ("audio_encoder", "speaker_encoder") if any(f" {name}: " in line for line in lines)]


def test_a_component_of_another_shape_is_new_where_it_is_named(saved, tiny_config):
    config = changed(tiny_config, speaker_encoder={"width": 20})
    model = fresh(config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    coverage = cover(model, saved, new_components=["speaker_*"])
    assert (
        len(coverage.components["speaker_encoder"].new) == len(coverage.components["speaker_encoder"].unexpected) == 2
    )
    load_covered(model, coverage)
    tensors = load_file(saved / "model.safetensors")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith("speaker_") else tensors[key]), key


def test_a_misspelt_new_component_is_told(saved, tiny_config):
    with pytest.raises(
        ConfigError, match="'audio_adaptr' matches no module with weights; did you mean 'audio_adapter'"
    ):
        cover(meta_model(tiny_config), saved, new_components=["audio_adaptr"])


@pytest.fixture
def based(tiny_config, tmp_path):
    torch.manual_seed(7)
    LlamaForCausalLM(build_hf_config(tiny_config.text_decoder)).save_pretrained(tmp_path / "base")
    return changed(tiny_config, text_decoder={"pretrained": str(tmp_path / "base")})


def test_base_checkpoints_count_as_not_random(saved, based, tmp_path):
    change(saved, lambda tensors: [tensors.pop(key) for key in list(tensors) if key.startswith("text_decoder")])
    model = fresh(based)
    coverage = cover(model, saved)
    assert coverage.components["text_decoder"].base == str(tmp_path / "base")
    assert f"what is new comes from {tmp_path / 'base'}" in "\n".join(coverage.lines())
    load_covered(model, coverage)
    expected = load_file(tmp_path / "base" / "model.safetensors")
    assert all(torch.equal(model.text_decoder.model.state_dict()[key], value) for key, value in expected.items())
    assert model.base_sources["text_decoder"]["pretrained"] == str(tmp_path / "base")


def test_a_checkpoint_of_trained_weights_brings_its_base(based, tiny_processor, tmp_path):
    model = SpeechLMM.from_model_config(based)
    set_trainable(model, ["text_decoder.model.model.norm", "audio_adapter"])
    with torch.no_grad():
        model.text_decoder.model.model.norm.weight.add_(1)
    save_model(model, tiny_processor, tmp_path / "part", save="trainable")
    loaded = fresh(based)
    load_covered(loaded, cover(loaded, tmp_path / "part"))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    freeze(loaded, ["text_decoder"])
    save_model(loaded, tiny_processor, tmp_path / "next", save="trainable")
    assert "text_decoder.model.model.norm.weight" in load_file(tmp_path / "next" / "model.safetensors")
    change(tmp_path / "part", lambda tensors: tensors.pop("text_decoder.model.model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"it should hold 1 tensor .*norm.weight.*; it is incomplete"):
        cover(loaded, tmp_path / "part")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(CheckpointError, match="no folder"):
        load_covered(fresh(changed(based)), cover(fresh(based), tmp_path / "next"))


def test_adapters_come_along(tiny_model, tiny_processor, tiny_config, tmp_path):
    inject(tiny_model, [LoraAdapterConfig(name="x", target_module="text_decoder.model", init_lora_weights=False)])
    save_model(tiny_model, tiny_processor, tmp_path / "model")
    model = fresh(tiny_config)
    coverage = cover(model, tmp_path / "model")
    assert list(coverage.lines())[-1] == "with the adapters x"
    load_covered(model, coverage)
    assert all(torch.equal(value, tiny_model.state_dict()[key]) for key, value in model.state_dict().items())
