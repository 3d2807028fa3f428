"""Base weights from every layout that checkpoints are published in."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import pytest
import torch
import yaml
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    HubertConfig,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from speechlmm_core.errors import CheckpointError
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_encoders.architecture import architecture_of, check_architecture
from speechlmm_encoders.hubert.config import HubertArchitecture
from speechlmm_encoders.wavlm.config import WavLMArchitecture
from speechlmm_encoders.whisper.config import WhisperArchitecture

WHISPER = {
    "num_mel_bins": 16,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "max_source_positions": 50,
}
WHISPER_REST = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 20}
WHISPER_REST |= {"max_target_positions": 4, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
HUBERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
}


def random_weights(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """The same encoder in every layout."""
    root = tmp_path_factory.mktemp("whisper")
    whole = random_weights(WhisperForConditionalGeneration(WhisperConfig(**WHISPER, **WHISPER_REST)))
    whole.save_pretrained(root / "generation")
    whole.model.save_pretrained(root / "model")
    whole.model.encoder.save_pretrained(root / "encoder")
    whole.model.encoder.save_pretrained(root / "sharded", max_shard_size="20KB")
    assert (root / "sharded" / "model.safetensors.index.json").exists()
    (root / "pickled").mkdir()
    torch.save(whole.state_dict(), root / "pickled" / "pytorch_model.bin")
    (root / "pickled" / "config.json").write_text((root / "generation" / "config.json").read_text())
    return root, whole.model.encoder


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    root = tmp_path_factory.mktemp("hubert")
    ctc = random_weights(HubertForCTC(HubertConfig(**HUBERT, vocab_size=8, mask_time_prob=0.05)))
    ctc.save_pretrained(root / "ctc")
    ctc.hubert.save_pretrained(root / "model")
    (root / "old").mkdir()
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    old = {re.sub("|".join(names), lambda found: names[found[0]], key): v for key, v in ctc.state_dict().items()}
    assert "hubert.encoder.pos_conv_embed.conv.weight_g" in old
    torch.save(old, root / "old" / "pytorch_model.bin")
    (root / "old" / "config.json").write_text((root / "ctc" / "config.json").read_text())
    return root, ctc.hubert


def load(data):
    encoder = encoders.validate(data).build(BuildContext())
    encoder.load_base_weights()
    return encoder


@pytest.mark.parametrize("kind", ["whisper", "whisper_unrestricted"])
@pytest.mark.parametrize("layout", ["generation", "model", "encoder", "sharded", "pickled"])
def test_whisper(whisper, layout, kind):
    root, published = whisper
    encoder = load({"type": kind, "pretrained": str(root / layout)})
    assert encoder.config.hidden_size == 32
    own = encoder.model.state_dict()
    assert own.keys() == published.state_dict().keys()
    for name, tensor in published.state_dict().items():
        assert torch.equal(own[name], tensor), name


@pytest.mark.parametrize("spec_augment", [False, True])
@pytest.mark.parametrize("layout", ["ctc", "model", "old"])
def test_hubert(hubert, layout, spec_augment):
    root, published = hubert
    encoder = load({"type": "hubert", "pretrained": str(root / layout), "apply_spec_augment": spec_augment})
    own = encoder.model.state_dict()
    assert set(published.state_dict()) - set(own) == (set() if spec_augment else {"masked_spec_embed"})
    for name, tensor in own.items():
        assert torch.equal(tensor, published.state_dict()[name]), name


def test_by_the_name_below_the_root_of_components(whisper, monkeypatch):
    root, _ = whisper
    monkeypatch.setenv("PRETRAINED_COMPONENTS", str(root))
    assert load({"type": "whisper", "pretrained": "encoder"}).config.model.encoder_layers == 2


def test_numbers_from_the_checkpoint_are_kept_in_the_configuration(whisper, monkeypatch):
    """A saved configuration builds the module where the base checkpoint is not at hand."""
    root, _ = whisper
    config = encoders.validate({"type": "whisper_unrestricted", "pretrained": str(root / "encoder")})
    saved = {**config.model_dump(mode="json"), "pretrained": "nobody/nothing"}
    again = encoders.validate(saved)
    assert again.model == config.model
    again.build(BuildContext())


@pytest.mark.parametrize(
    ("key", "value"), [("num_mel_bins", 17), ("encoder_layers", 3), ("max_source_positions", 60), ("d_model", 64)]
)
def test_numbers_that_disagree_with_the_checkpoint(whisper, key, value):
    root, _ = whisper
    with pytest.raises(CheckpointError, match=rf"{key} is {value} here and {WHISPER[key]} there"):
        load({"type": "whisper", "pretrained": str(root / "encoder"), "model": {**WHISPER, key: value}})


def test_dropout_may_differ_from_the_checkpoint(whisper):
    root, _ = whisper
    load({"type": "whisper", "pretrained": str(root / "encoder"), "model": {**WHISPER, "dropout": 0.1}})


def test_normalisation_that_disagrees_with_the_checkpoint(hubert, tmp_path):
    root, _ = hubert
    for file in (root / "model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    with pytest.raises(CheckpointError, match="do_normalize False, and the configuration says True"):
        load({"type": "hubert", "pretrained": str(tmp_path)})
    load({"type": "hubert", "pretrained": str(tmp_path), "do_normalize": False})


@pytest.mark.parametrize("kind", ["whisper", "whisper_unrestricted", "hubert", "wavlm"])
def test_a_model_of_another_type(kind, tmp_path):
    BertModel(
        BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    ).save_pretrained(tmp_path)
    expected = kind.removesuffix("_unrestricted")
    with pytest.raises(CheckpointError, match=f"a model of type 'bert', expected {expected}; .*`hf_audio`"):
        encoders.validate({"type": kind, "pretrained": str(tmp_path)})


def test_a_relative_of_the_right_architecture(tmp_path):
    """Wav2vec 2.0 has HuBERT's numbers and tensors, but is not HuBERT."""
    Wav2Vec2Model(Wav2Vec2Config(**HUBERT)).save_pretrained(tmp_path)
    for data in ({}, {"model": HUBERT}):
        with pytest.raises(CheckpointError, match="a model of type 'wav2vec2', expected hubert"):
            load({"type": "hubert", "pretrained": str(tmp_path), **data})


@pytest.mark.parametrize(
    ("architecture", "theirs"),
    [(HubertArchitecture, HubertConfig), (WavLMArchitecture, WavLMConfig), (WhisperArchitecture, WhisperConfig)],
)
def test_what_a_configuration_leaves_out_is_as_in_transformers(architecture, theirs, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": theirs.model_type}))
    numbers = architecture.model_validate(architecture_of({"pretrained": str(tmp_path)}, architecture)["model"])
    expected = {
        "mask_feature_min_masks": 0,
        **theirs(mask_time_prob=0.05).to_dict(),
        "conv_pos_batch_norm": False,
        "feat_proj_layer_norm": True,
    }
    for key, value in numbers.model_dump(mode="json").items():
        assert value == (list(expected[key]) if isinstance(expected[key], tuple) else expected[key]), key
    check_architecture(numbers, str(tmp_path))
    with pytest.raises(CheckpointError, match="leave `model` out"):
        check_architecture(architecture(), str(tmp_path))


@pytest.mark.parametrize("name", ["hubert_base", "wavlm_base"])
def test_base_presets_have_transformers_defaults(name):
    """What transformers documents as the style of these checkpoints."""
    path = files("speechlmm_encoders.presets") / "model" / "audio_encoder" / f"{name}.yaml"
    numbers = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    theirs = {"hubert_base": HubertConfig, "wavlm_base": WavLMConfig}[name]().to_dict()
    for key, value in numbers.items():
        if "dropout" not in key:
            assert value == (list(theirs[key]) if isinstance(theirs[key], tuple) else theirs[key]), key


@pytest.mark.parametrize("kind", ["whisper", "whisper_unrestricted", "hubert", "wavlm", "hf_audio"])
def test_a_checkpoint_that_is_on_the_hub_only(kind, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = r"HF_HUB_OFFLINE is set, .* 'nobody/nothing'; unset it, or download .* below \$PRETRAINED_COMPONENTS"
    with pytest.raises(CheckpointError, match=message):
        encoders.validate({"type": kind, "pretrained": "nobody/nothing"})
    preset = files("speechlmm_encoders.presets") / "model" / "audio_encoder" / f"tiny_{kind}.yaml"
    data = {"feature_extractor": {"do_normalize": True}} if kind == "hf_audio" else {}
    data |= yaml.safe_load(preset.read_text(encoding="utf-8"))
    config = encoders.validate({**data, "pretrained": "nobody/nothing"})
    with pytest.raises(CheckpointError, match=message):
        config.build(BuildContext()).load_base_weights()


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (GatedRepoError, r"accept its terms at https://huggingface\.co/nobody/nothing .* by `hf auth login`"),
        (RepositoryNotFoundError, "the hub has no model 'nobody/nothing', or it is private; check the name"),
        (TimeoutError, r"cannot get 'nobody/nothing@main' from the Hugging Face hub: refused \(without a network"),
    ],
)
def test_a_checkpoint_that_the_hub_does_not_give(error, advice, monkeypatch):
    failure = error.__new__(error, "refused")  # the hub's own take a response besides
    Exception.__init__(failure, "refused")

    def refuse(*args, **options):
        raise failure

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(CheckpointError, match=advice):
        encoders.validate({"type": "wavlm", "pretrained": "nobody/nothing@main"})


def test_a_tensor_too_few_and_one_too_many(whisper, tmp_path):
    root, _ = whisper
    for file in (root / "encoder").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["adapter.weight"] = tensors.pop("conv1.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing \(conv1\.bias\).*unexpected \(adapter\.weight\)"):
        load({"type": "whisper", "pretrained": str(tmp_path)})


def test_no_such_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no folder"):
        encoders.validate({"type": "whisper", "pretrained": str(tmp_path / "nothing")})


def test_transformers_reads_what_the_encoder_saves(whisper, tmp_path):
    root, published = whisper
    encoder = load({"type": "whisper", "pretrained": str(root / "generation")})
    encoder.model.save_pretrained(tmp_path)
    again = load({"type": "whisper", "pretrained": str(tmp_path)})
    assert torch.equal(again.model.conv1.weight, published.conv1.weight)


def test_random_weights_need_no_checkpoint():
    load({"type": "whisper", "model": WHISPER})
    load({"type": "hubert", "model": HUBERT})
