"""HuBERT with both norms against transformers on single, unpadded clips."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.media.medium import Medium
from speechlmm_encoders.hubert.config import HubertEncoderConfig

COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
BASE = {**COMMON, "do_stable_layer_norm": False, "feat_extract_norm": "group", "conv_bias": False}
LARGE = {**COMMON, "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}


def media(*lengths: int) -> list[Medium]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [Medium(torch.randn(length, generator=generator) * 0.1 + 0.05, 16_000) for length in lengths]


def build(model, attention="auto", **options):
    torch.manual_seed(0)
    config = HubertEncoderConfig.model_validate({"model": model, **options})
    encoder = config.build(BuildContext(attn_implementation=attention)).eval()
    with torch.no_grad():  # norms at their start would hide a missing scale or shift
        for name, parameter in encoder.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    return encoder


@pytest.fixture(scope="module", params=["base", "large"])
def encoder(request):
    return build({"base": BASE, "large": LARGE}[request.param])


def encode(encoder, clips):
    with torch.no_grad():
        return encoder(encoder.config.build_preprocessor()(clips))


def theirs(encoder, clip, *, do_normalize=True, **options):
    config = HubertConfig(**{**encoder.config.architecture.model_dump(), "mask_time_prob": 0.0})
    model = HubertModel(config).eval()
    found = model.load_state_dict(encoder.model.state_dict(), strict=False)
    assert not found.unexpected_keys  # layers above the wanted one are missing
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
    values = extractor(clip.values.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        return model(values, **options)


def test_a_padded_batch_equals_transformers_on_each_clip_alone(encoder):
    clips = media(16_000, 400, 20_001, 7_777)
    out = encode(encoder, clips)
    assert out.lengths.tolist() == [49, 1, 62, 24]
    for clip, values, length in zip(clips, out.values, out.lengths, strict=True):
        expected = theirs(encoder, clip).last_hidden_state[0]
        assert len(expected) == length
        torch.testing.assert_close(values[:length], expected, atol=1e-5, rtol=0)
        assert not values[length:].any()


def test_eager_attention_and_raw_samples():
    for model in (BASE, LARGE):
        encoder = build(model, "eager", do_normalize=False)
        clips = media(9_000, 5_000)
        out = encode(encoder, clips)
        for clip, values, length in zip(clips, out.values, out.lengths, strict=True):
            expected = theirs(encoder, clip, do_normalize=False).last_hidden_state[0]
            torch.testing.assert_close(values[:length], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", [BASE, LARGE])
def test_inner_layers_equal_transformers_hidden_states(model):
    clips = media(8_000)
    for layer in (-3, -2, -1, 0, 1, 2):
        encoder = build(model, layer=layer)
        if layer in (-1, 2):  # transformers leaves the large models' last norm out of its list of states
            expected = theirs(encoder, clips[0]).last_hidden_state
        else:
            expected = theirs(encoder, clips[0], output_hidden_states=True).hidden_states[layer]
        torch.testing.assert_close(encode(encoder, clips).values[0], expected[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"layer": 25}, "layer must be between -25 and 24"),
        ({"chunk_seconds": 1, "chunk_overlap_seconds": 0.5}, "keeps nothing"),
        ({"model": {"conv_dim": [512]}}, "equally long"),
        ({"model": {"num_attention_heads": 3}}, "multiple of num_attention_heads"),
        ({"model": {"conv_pos_batch_norm": True}}, "conv_pos_batch_norm"),
    ],
)
def test_configurations_that_cannot_be(data, message):
    with pytest.raises(ValidationError, match=message):
        HubertEncoderConfig.model_validate(data)


def test_published_numbers_by_default():
    config = HubertEncoderConfig()
    assert (config.hidden_size, config.sampling_rate, config.frame_rate) == (1024, 16_000, 50)
    assert HubertEncoderConfig.model_validate(config.model_dump(mode="json")) == config
