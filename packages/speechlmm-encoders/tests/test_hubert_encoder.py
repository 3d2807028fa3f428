"""HuBERT with both norms against transformers on single, unpadded clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
    model.load_state_dict(encoder.model.state_dict())
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
        torch.testing.assert_close(values[:length], expected, atol=5e-5, rtol=0)
        assert not values[length:].any()


def test_eager_attention_and_raw_samples():
    for model in (BASE, LARGE):
        encoder = build(model, "eager", do_normalize=False)
        clips = media(9_000, 5_000)
        out = encode(encoder, clips)
        for clip, values, length in zip(clips, out.values, out.lengths, strict=True):
            expected = theirs(encoder, clip, do_normalize=False).last_hidden_state[0]
            torch.testing.assert_close(values[:length], expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("model", [BASE, LARGE])
def test_inner_layers_equal_transformers_hidden_states(model):
    clips = media(8_000)
    for layer in (-3, -2, -1, 0, 1, 2):
        encoder = build(model, layer=layer)
        states = theirs(encoder, clips[0], output_hidden_states=True).hidden_states
        if layer in (-1, 2):  # transformers leaves the large models' last norm out of its list
            states = [theirs(encoder, clips[0]).last_hidden_state]
            layer = 0
        torch.testing.assert_close(encode(encoder, clips).values[0], states[layer][0], atol=5e-5, rtol=0)


def test_what_stands_in_the_padding_has_no_influence(encoder):
    inputs = encoder.config.build_preprocessor()(media(20_000, 5_000))
    valid = torch.arange(inputs["input_values"].shape[1]) < inputs["lengths"][:, None]
    spoilt = {**inputs, "input_values": torch.where(valid, inputs["input_values"], 1e3)}
    with torch.no_grad():
        torch.testing.assert_close(encoder(spoilt).values, encoder(inputs).values, rtol=0, atol=0)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 6_000), max_size=4))
def test_declared_lengths_are_the_real_ones(encoder, lengths):
    out = encode(encoder, media(*lengths))
    declared = [encoder.config.output_lengths(length) for length in lengths]
    assert out.lengths.tolist() == declared
    assert out.values.shape == (len(lengths), max(declared, default=0), 32)
    assert encoder.config.output_lengths(np.array(lengths, dtype=np.int64)).tolist() == declared
    assert out.values.isfinite().all()


@given(num_samples=st.integers(0, 10**7))
def test_lengths_equal_transformers_formula(num_samples):
    config = HubertEncoderConfig()
    model = HubertModel.__new__(HubertModel)
    model.config = HubertConfig()
    expected = max(0, int(model._get_feat_extract_output_lengths(torch.tensor(num_samples))))
    assert config.output_lengths(num_samples) == expected


def test_long_audio_in_chunks_equals_the_whole_before_attention():
    """Convolutions are local: away from the seams (here everywhere, given the context) the chunks agree."""
    whole = build(LARGE, layer=0)
    cut = build(LARGE, layer=0, chunk_seconds=0.8, chunk_overlap_seconds=0.2)
    clips = media(50_000, 3_000, 12_800, 12_801, 13_200)
    expected, got = encode(whole, clips), encode(cut, clips)
    assert (
        got.lengths.tolist() == expected.lengths.tolist() == [cut.config.output_lengths(len(c.values)) for c in clips]
    )
    for a, b, length in zip(got.values, expected.values, got.lengths, strict=True):
        torch.testing.assert_close(a[:length], b[:length], atol=1e-5, rtol=0)


def test_spec_augment_acts_at_training_and_only_if_asked():
    numbers = {**LARGE, **dict.fromkeys(("attention_dropout", "hidden_dropout", "activation_dropout"), 0.0)}
    numbers |= {"feat_proj_dropout": 0.0, "layerdrop": 0.0, "mask_time_prob": 0.5}
    plain = build(numbers)
    assert not hasattr(plain.model, "masked_spec_embed")
    inputs = plain.config.build_preprocessor()(media(16_000, 2_000))
    quiet = plain(inputs).values
    assert torch.equal(plain.train()(inputs).values, quiet)
    augmented = build(numbers, apply_spec_augment=True)
    assert torch.equal(augmented(inputs).values, augmented(inputs).values)
    noisy = augmented.train()(inputs).values
    assert not torch.equal(noisy, augmented.eval()(inputs).values)
    noisy.sum().backward()
    assert augmented.model.masked_spec_embed.grad is not None
    augmented.train()(plain.config.build_preprocessor()(media(500)))  # shorter than a masked span


def test_dropout_acts_at_training_only():
    encoder = build({**BASE, "layerdrop": 0.5})
    inputs = encoder.config.build_preprocessor()(media(16_000))
    assert torch.equal(encoder(inputs).values, encoder(inputs).values)
    encoder.train()
    assert not torch.equal(encoder(inputs).values, encoder(inputs).values)


def test_bf16_and_gradients(encoder):
    twin = build(encoder.config.architecture.model_dump())
    inputs = twin.config.build_preprocessor()(media(16_000, 3_000))
    twin(inputs).values.square().sum().backward()
    assert [name for name, p in twin.named_parameters() if p.grad is None] == []
    exact = twin(inputs).values
    rounded = twin.bfloat16()(inputs).values
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().mean() < 0.1


def test_state_dict_round_trip(encoder):
    assert not list(encoder.buffers())
    twin = encoder.config.build(BuildContext()).eval()
    twin.load_state_dict(encoder.state_dict())
    clips = media(7_000)
    assert torch.equal(encode(twin, clips).values, encode(encoder, clips).values)


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
