"""The layer that is put out: -1, k, or a learned weighted sum, against transformers' hidden states."""

from __future__ import annotations

from importlib.resources import files

import pytest
import torch
import yaml
from transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.media.medium import Medium
from speechlmm_core.model.freezing import freeze
from speechlmm_core.testing.composite import new_model, tiny_model_config
from speechlmm_core.testing.toy import ToyAdapterConfig

COMMON = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "conv_dim": [16] * 7}
COMMON |= {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
BASE = {**COMMON, "do_stable_layer_norm": False, "feat_extract_norm": "group", "conv_bias": False}
LARGE = {**COMMON, "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
WHISPER = {"num_mel_bins": 16, "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
WHISPER |= {"max_source_positions": 100}
"""Windows of 2 s."""
FAMILIES = {
    "whisper": ("whisper", WHISPER),
    "whisper_unrestricted": ("whisper_unrestricted", WHISPER),
    "hubert-base": ("hubert", BASE),
    "hubert-large": ("hubert", LARGE),
    "wavlm-base": ("wavlm", {**BASE, "num_buckets": 16, "max_bucket_distance": 20}),
    "wavlm-large": ("wavlm", {**LARGE, "num_buckets": 16, "max_bucket_distance": 20}),
}
CLIP = Medium(torch.randn(32_000, generator=torch.Generator().manual_seed(0)) * 0.1, 16_000)


def build(family, layer):
    torch.manual_seed(0)
    kind, numbers = FAMILIES[family]
    encoder = encoders.validate({"type": kind, "model": numbers, "layer": layer}).build(BuildContext()).eval()
    with torch.no_grad():  # norms at their start would hide a fault
        for name, parameter in encoder.model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    return encoder


def their_states(encoder):
    """(N + 1, T, D) states of transformers' own model, the last one normalised where the model has a norm there."""
    kind, numbers = encoder.config.type, encoder.config.architecture.model_dump()
    if "whisper" in kind:
        options = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8}
        model = WhisperModel(WhisperConfig(**numbers, **options)).get_encoder()
        extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    else:
        config, model_class = {"hubert": (HubertConfig, HubertModel), "wavlm": (WavLMConfig, WavLMModel)}[kind]
        model = model_class(config(**{**numbers, "mask_time_prob": 0.0}))
        extractor = Wav2Vec2FeatureExtractor()
    loaded = model.eval().load_state_dict(encoder.model.state_dict(), strict=False)
    assert not loaded.unexpected_keys  # layers above the wanted one are missing
    inputs = extractor(CLIP.values.numpy(), sampling_rate=16_000, return_tensors="pt")
    inputs.pop("attention_mask", None)
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True)
    assert len(found.hidden_states) == 4
    return torch.stack([*found.hidden_states[:-1], found.last_hidden_state])[:, 0]


def encode(encoder):
    with torch.no_grad():
        return encoder(encoder.config.build_preprocessor()([CLIP])).values[0]


@pytest.mark.parametrize("layer", [-4, -2, -1, 0, 1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_layer(family, layer):
    encoder = build(family, layer)
    assert encoder.layer_mix is None
    torch.testing.assert_close(encode(encoder), their_states(encoder)[layer], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weighted_sum_of_all_of_them(family):
    encoder = build(family, "weighted")
    states = their_states(encoder)
    torch.testing.assert_close(encode(encoder), states.mean(0), atol=1e-5, rtol=1e-5)
    encoder.layer_mix.weights.data.copy_(torch.tensor([0.5, -1.0, 0.1, 2.0]))
    shares = torch.tensor([0.5, -1.0, 0.1, 2.0]).exp()
    shares = shares / shares.sum()
    expected = sum(share * state for share, state in zip(shares, states, strict=True))
    torch.testing.assert_close(encode(encoder), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["whisper", "whisper_unrestricted", "hubert", "wavlm", "hf_audio", "hf_audio_mel"])
def test_the_weights_train_while_the_network_is_frozen(name):
    path = files("speechlmm_encoders.presets") / "model" / "audio_encoder" / f"tiny_{name}.yaml"
    config = encoders.validate({**yaml.safe_load(path.read_text(encoding="utf-8")), "layer": "weighted"})
    with tiny_model_config({"audio_encoder": config, "audio_adapter": ToyAdapterConfig()}) as towers:
        model = new_model(towers)
    freeze(model, ["audio_encoder.model"])
    model.train()
    encoder = model.components()["audio_encoder"]
    assert [name for name, value in encoder.named_parameters() if value.requires_grad] == ["layer_mix.weights"]
    values = encoder(config.build_preprocessor()([CLIP])).values
    (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert encoder.layer_mix.weights.grad.abs().min() > 0
    assert all(value.grad is None for value in encoder.model.parameters())
    assert not encoder.model.training
