"""Checkpoints of transformers through `hf_audio`: weights, feature extractors, and what does not fit."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.errors import CheckpointError
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.testing.composite import tiny_model_config
from speechlmm_core.testing.toy import ToyAdapterConfig

WAV2VEC2 = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [20, 4, 4],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "codevector_dim": 8,
    "proj_codevector_dim": 8,
    "vocab_size": 8,
}
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "max_target_positions": 4}
DECODER |= {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
ENCODER = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}


def save(folder, model, extractor):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(folder)
    if extractor is not None:
        extractor.save_pretrained(folder)
    return model


def load(folder, **data):
    encoder = encoders.validate({"type": "hf_audio", "pretrained": str(folder), **data}).build(BuildContext())
    encoder.load_base_weights()
    return encoder


def assert_loaded(encoder, published):
    own = encoder.model.state_dict()
    assert set(own) >= set(published.state_dict()) - {"masked_spec_embed"}
    for name, tensor in own.items():
        assert torch.equal(tensor, published.state_dict()[name]), name


@pytest.mark.parametrize("kind", [Wav2Vec2Model, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining])
@pytest.mark.parametrize("spec_augment", [False, True])
def test_raw_audio(tmp_path, kind, spec_augment):
    model = save(tmp_path, kind(Wav2Vec2Config(**WAV2VEC2)), Wav2Vec2FeatureExtractor(do_normalize=False))
    encoder = load(tmp_path, apply_spec_augment=spec_augment)
    assert_loaded(encoder, getattr(model, "wav2vec2", model))
    assert encoder.config.extraction["do_normalize"] is False
    assert encoder.config.hidden_size == 32


def test_whisper(tmp_path):
    config = WhisperConfig(**ENCODER, **DECODER, num_mel_bins=16, max_source_positions=50)
    model = save(tmp_path, WhisperForConditionalGeneration(config), WhisperFeatureExtractor(feature_size=16))
    assert_loaded(load(tmp_path), model.model.encoder)
    model.model.encoder.save_pretrained(tmp_path)
    assert_loaded(load(tmp_path), model.model.encoder)


def test_speech_to_text(tmp_path):
    config = Speech2TextConfig(**ENCODER, **DECODER, input_feat_per_channel=16, conv_channels=32)
    extractor = Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16)
    model = save(tmp_path, Speech2TextForConditionalGeneration(config), extractor)
    assert_loaded(load(tmp_path), model.model.encoder)


@pytest.fixture
def wav2vec2(tmp_path):
    save(tmp_path, Wav2Vec2Model(Wav2Vec2Config(**WAV2VEC2)), Wav2Vec2FeatureExtractor())
    return tmp_path


def test_a_saved_configuration_needs_no_checkpoint(wav2vec2):
    config = encoders.validate({"type": "hf_audio", "pretrained": str(wav2vec2)})
    again = encoders.validate({**config.model_dump(mode="json"), "pretrained": "nobody/nothing"})
    assert again.numbers == config.numbers
    assert again.extraction == config.extraction
    again.build(BuildContext())


def test_numbers_that_suffice_need_no_checkpoint():
    data = {"model": {"model_type": "wav2vec2", **WAV2VEC2}, "feature_extractor": {"do_normalize": True}}
    config = encoders.validate({"type": "hf_audio", "pretrained": "nobody/nothing", **data})
    assert config.hidden_size == 32
    assert config.extraction["sampling_rate"] == 16_000


def test_numbers_that_disagree(wav2vec2):
    data = {"type": "hf_audio", "pretrained": str(wav2vec2)}
    with pytest.raises(CheckpointError, match="hidden_size is 64 here and 32 there; leave those keys out"):
        encoders.validate({**data, "model": {"hidden_size": 64}})
    with pytest.raises(CheckpointError, match="model_type is 'hubert' here and 'wav2vec2' there"):
        encoders.validate({**data, "model": {"model_type": "hubert"}})
    assert load(wav2vec2, model={"attention_dropout": 0.5, "layerdrop": 0.0}).model.config.attention_dropout == 0.5


def test_numbers_that_disagree_are_found_at_loading(wav2vec2, monkeypatch):
    """Where the numbers sufficed at validation, the checkpoint was not asked then."""
    config = encoders.validate({"type": "hf_audio", "model": {"model_type": "wav2vec2", **WAV2VEC2, "hidden_size": 64}})
    config = config.model_copy(update={"pretrained": str(wav2vec2)})
    with pytest.raises(CheckpointError, match="hidden_size is 64 here and 32 there"):
        config.build(BuildContext()).load_base_weights()


def test_a_preset_s_numbers_are_undone_by_null(wav2vec2):
    config = encoders.validate(
        {"type": "hf_audio", "pretrained": str(wav2vec2), "model": None, "feature_extractor": None}
    )
    assert config.hidden_size == 32


def test_a_feature_extractor_within_its_processor(wav2vec2):
    text = (wav2vec2 / "preprocessor_config.json").read_text(encoding="utf-8")
    (wav2vec2 / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"the feature extractor of .* is missing .* under `feature_extractor:`"):
        load(wav2vec2)
    load(wav2vec2, feature_extractor={"do_normalize": True})
    (wav2vec2 / "processor_config.json").write_text(json.dumps({"feature_extractor": json.loads(text)}))
    assert load(wav2vec2).config.extraction["do_normalize"] is True


def test_code_of_the_checkpoint_is_never_run(wav2vec2):
    path = wav2vec2 / "preprocessor_config.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**found, "auto_map": {"AutoFeatureExtractor": "theirs.Extractor"}}))
    load(wav2vec2)
    path.write_text(json.dumps({**found, "feature_extractor_type": "TheirExtractor"}))
    with pytest.raises(ValueError, match="the feature extractor is a 'TheirExtractor', but a model of the type"):
        load(wav2vec2)


def test_a_text_model(tmp_path):
    BertModel(
        BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hf_audio cannot take a model of the type 'bert': it takes tokens"):
        encoders.validate({"type": "hf_audio", "pretrained": str(tmp_path), "feature_extractor": {}})


def test_a_saved_model_needs_no_folder_that_it_began_with(tmp_path):
    folder = tmp_path / "base"
    published = Wav2Vec2Model(Wav2Vec2Config(**WAV2VEC2))
    published.save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    config = encoders.validate({"type": "hf_audio", "model": None, "pretrained": str(folder)})
    with tiny_model_config({"audio_encoder": config, "audio_adapter": ToyAdapterConfig()}) as towers:
        model = SpeechLMM.from_model_config(towers)
        save_model(model, SpeechLMMProcessor.from_config(towers), tmp_path / "saved")
        folder.rename(tmp_path / "elsewhere")
        again = SpeechLMM.from_pretrained(tmp_path / "saved")
    own = again.components()["audio_encoder"].model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in published.state_dict().items() if name in own)
