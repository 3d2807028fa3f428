"""WavLM with both norms against transformers on single, unpadded clips."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForCTC, WavLMModel

from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.media.medium import Medium
from speechlmm_encoders.wavlm.config import WavLMEncoderConfig

COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "num_buckets": 16,
    "max_bucket_distance": 20,
}
BASE = {**COMMON, "do_stable_layer_norm": False, "feat_extract_norm": "group"}
LARGE = {**COMMON, "do_stable_layer_norm": True, "feat_extract_norm": "layer"}


def media(*lengths: int) -> list[Medium]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [Medium(torch.randn(length, generator=generator) * 0.1 + 0.05, 16_000) for length in lengths]


def build(model, **options):
    torch.manual_seed(0)
    encoder = WavLMEncoderConfig.model_validate({"model": model, **options}).build(BuildContext()).eval()
    with torch.no_grad():  # norms, gates and buckets at their start would hide a fault
        for name, parameter in encoder.named_parameters():
            if "norm" in name or "rel_" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.5)
    return encoder


def encode(encoder, clips):
    with torch.no_grad():
        return encoder(encoder.config.build_preprocessor()(clips))


def theirs(encoder, clip, *, do_normalize=True, **options):
    model = WavLMModel(WavLMConfig(**{**encoder.config.architecture.model_dump(), "mask_time_prob": 0.0})).eval()
    found = model.load_state_dict(encoder.model.state_dict(), strict=False)
    assert not found.unexpected_keys  # layers above the wanted one are missing
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
    values = extractor(clip.values.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        return model(values, **options)


@pytest.mark.parametrize("model", [BASE, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("do_normalize", [True, False])
def test_a_padded_batch_equals_transformers_on_each_clip_alone(model, do_normalize):
    encoder = build(model, do_normalize=do_normalize)
    clips = media(16_000, 400, 20_001, 7_777)
    out = encode(encoder, clips)
    assert out.lengths.tolist() == [49, 1, 62, 24]
    for clip, values, length in zip(clips, out.values, out.lengths, strict=True):
        expected = theirs(encoder, clip, do_normalize=do_normalize).last_hidden_state[0]
        assert len(expected) == length
        torch.testing.assert_close(values[:length], expected, atol=1e-5, rtol=0)
        assert not values[length:].any()


def test_a_clip_too_short_for_a_frame_beside_another():
    encoder = build(BASE)
    out = encode(encoder, media(8_000, 100))
    assert out.lengths.tolist() == [24, 0]
    assert out.values.isfinite().all()
    assert not out.values[1].any()


def test_the_bias_is_computed_once(monkeypatch):
    encoder = build(BASE)
    first = encoder.model.encoder.layers[0].attention
    calls = []
    compute = first.compute_bias
    monkeypatch.setattr(first, "compute_bias", lambda *sizes: calls.append(sizes) or compute(*sizes))
    encode(encoder, media(8_000, 4_000))
    assert calls == [(24, 24)]


def test_the_bias_s_weights_get_gradients_though_the_first_layer_be_left_out():
    encoder = build(BASE)
    encoder.train()
    encoder.model.encoder.layers[0].eval()
    encoder(encoder.config.build_preprocessor()(media(8_000))).values.square().sum().backward()
    assert encoder.model.encoder.layers[0].attention.rel_attn_embed.weight.grad.abs().sum() > 0


def test_attention_is_the_module_s_own_whatever_is_asked_for(caplog):
    config = WavLMEncoderConfig.model_validate({"model": BASE})
    for asked in ("auto", "eager", "sdpa"):
        encoder = config.build(BuildContext(attn_implementation=asked, component="wavlm_of_this_test"))
        assert encoder.model.config._attn_implementation == "eager"
    assert "wavlm_of_this_test cannot run on 'sdpa' here; it runs on 'eager'" in caplog.text


@pytest.mark.parametrize("kind", [WavLMModel, WavLMForCTC])
def test_weights_of_a_checkpoint(kind, tmp_path):
    torch.manual_seed(1)
    published = kind(WavLMConfig(**BASE, vocab_size=8, mask_time_prob=0.05))
    published.save_pretrained(tmp_path)
    encoder = WavLMEncoderConfig.model_validate({"pretrained": str(tmp_path)}).build(BuildContext())
    encoder.load_base_weights()
    whole = published.state_dict()
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, whole[name if kind is WavLMModel else f"wavlm.{name}"]), name


def test_a_feature_extractor_that_says_otherwise_is_reported(tmp_path, caplog):
    WavLMModel(WavLMConfig(**BASE)).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    encoder = WavLMEncoderConfig.model_validate({"pretrained": str(tmp_path)}).build(BuildContext())
    encoder.load_base_weights()
    assert "do_normalize False" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"layer": 25}, "layer must be between -25 and 24"),
        ({"model": {"num_buckets": 10}}, "multiple of 4"),
        ({"model": {"num_buckets": 320, "max_bucket_distance": 80}}, "max_bucket_distance more than a quarter"),
        ({"model": {"add_adapter": True}}, "add_adapter"),
        ({"model": {"num_attention_heads": 3}}, "multiple of num_attention_heads"),
    ],
)
def test_configurations_that_cannot_be(data, message):
    with pytest.raises(ValidationError, match=message):
        WavLMEncoderConfig.model_validate(data)


def test_published_numbers_by_default():
    config = WavLMEncoderConfig()
    assert (config.hidden_size, config.sampling_rate, config.frame_rate) == (1024, 16_000, 50)
    assert config.output_lengths(16_000) == 49
    assert WavLMEncoderConfig.model_validate(config.model_dump(mode="json")) == config
