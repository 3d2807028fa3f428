"""Audio encoders of transformers through `hf_audio`: each family against transformers on single clips, and refusals."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoConfig, AutoModel

from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.media.medium import Medium
from speechlmm_encoders.hf_audio.config import HFAudioEncoderConfig
from speechlmm_encoders.hf_audio.front_end import front_end_of

COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [20, 4, 4],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
LARGE = {**COMMON, "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
POST_NORM = {**LARGE, "do_stable_layer_norm": False}
GROUP = {**COMMON, "do_stable_layer_norm": False, "feat_extract_norm": "group"}
SEW = {**COMMON, "squeeze_factor": 2, "feat_extract_norm": "layer"}
ADAPTER = {"add_adapter": True, "num_adapter_layers": 2, "adapter_kernel_size": 3, "adapter_stride": 2}
SPEECH_TO_TEXT = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "input_feat_per_channel": 16,
    "conv_channels": 32,
    "num_conv_layers": 2,
    "conv_kernel_sizes": [5, 3],
    "max_source_positions": 300,
    "pad_token_id": 1,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 8,
    "vocab_size": 10,
}
WHISPER = {
    "num_mel_bins": 16,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "max_source_positions": 50,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 8,
}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "feature_projection_input_dim": 32,
    "conv_depthwise_kernel_size": 5,
    "output_hidden_size": 32,
}
MOONSHINE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "encoder_num_hidden_layers": 2,
    "decoder_num_hidden_layers": 1,
    "encoder_num_attention_heads": 2,
    "decoder_num_attention_heads": 2,
    "vocab_size": 10,
}
FAMILIES = {
    "wav2vec2": ("wav2vec2", LARGE, "masked"),
    "wav2vec2-post-norm": ("wav2vec2", POST_NORM, "masked"),
    "wav2vec2-group": ("wav2vec2", GROUP, "apart"),
    "wav2vec2-adapter": ("wav2vec2", {**LARGE, **ADAPTER, "output_hidden_size": 24}, "apart"),
    "hubert": ("hubert", LARGE, "masked"),
    "hubert-post-norm": ("hubert", POST_NORM, "masked"),
    "unispeech": ("unispeech", LARGE, "masked"),
    "unispeech-post-norm": ("unispeech", POST_NORM, "masked"),
    "unispeech-sat": ("unispeech-sat", LARGE, "masked"),
    "unispeech-sat-post-norm": ("unispeech-sat", POST_NORM, "masked"),
    "wavlm": ("wavlm", LARGE, "apart"),
    "data2vec-audio": ("data2vec-audio", {**COMMON, "conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2}, "apart"),
    "wav2vec2-conformer": ("wav2vec2-conformer", {**LARGE, "conv_depthwise_kernel_size": 5}, "apart"),
    "sew": ("sew", SEW, "apart"),
    "sew-d": ("sew-d", SEW, "apart"),
    "moonshine": ("moonshine", MOONSHINE, "apart"),
    "speech_to_text": ("speech_to_text", SPEECH_TO_TEXT, "apart"),
    "wav2vec2-bert": ("wav2vec2-bert", BERT, "apart"),
    "wav2vec2-bert-adapter": ("wav2vec2-bert", {**BERT, **ADAPTER}, "apart"),
    "whisper": ("whisper", WHISPER, "window"),
}
LAYERED = [name for name in FAMILIES if "adapter" not in name and "sew" not in name]


def media(*lengths: int) -> list[Medium]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [Medium(torch.randn(length, generator=generator) * 0.1 + 0.05, 16_000) for length in lengths]


def configure(family, **options):
    model_type, numbers, _ = FAMILIES[family]
    return HFAudioEncoderConfig.model_validate({"model": {"model_type": model_type, **numbers}, **options})


def build(family, attention="auto", **options):
    torch.manual_seed(0)
    encoder = configure(family, **options).build(BuildContext(attn_implementation=attention)).eval()
    with torch.no_grad():  # norms at their start would hide a fault
        for name, parameter in encoder.model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    return encoder


def encode(encoder, clips):
    with torch.no_grad():
        return encoder(encoder.config.build_preprocessor()(clips))


def theirs(encoder, clip, **options):
    """Transformers' own model with the encoder's weights on one clip, called as its documentation says."""
    config = encoder.config
    numbers = {**config.model, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    model = AutoModel.from_config(AutoConfig.for_model(**numbers)).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    found = model.load_state_dict(encoder.model.state_dict(), strict=False)
    assert not found.unexpected_keys  # layers above the wanted one are missing
    preprocessor = config.build_preprocessor()
    window = {"max_length": config.window, "padding": "max_length"} if config.window else {}
    inputs = preprocessor.extractor(clip.values.numpy(), sampling_rate=16_000, return_tensors="pt", **window)
    inputs.pop("attention_mask", None)
    with torch.no_grad():
        return model(**inputs, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_transformers_on_each_clip_alone(family):
    encoder = build(family)
    assert encoder.config.front_end.batching == FAMILIES[family][2]
    clips = media(9_000, 2_500, 14_003, 100, 9_000)
    out = encode(encoder, clips)
    for clip, values, length in zip(clips, out.values, out.lengths, strict=True):
        assert length == encoder.config.output_lengths(clip.num_samples)
        if length:
            expected = theirs(encoder, clip).last_hidden_state[0]
            assert encoder.config.window or len(expected) == length
            torch.testing.assert_close(values[:length], expected[:length], atol=1e-5, rtol=1e-5)
        assert not values[length:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_lengths_where_it_tells_them(family):
    config = configure(family)
    if config.front_end.input_name != "input_values" or family == "moonshine":
        return  # the formula of the others takes the length of their features, which is tested above
    model = AutoModel.from_config(AutoConfig.for_model(**config.model))
    sizes = torch.tensor([400, 1000, 9_001, 16_000, 480_000])
    assert config.output_lengths(sizes).tolist() == model._get_feat_extract_output_lengths(sizes).tolist()


@pytest.mark.parametrize("family", LAYERED)
def test_layers_equal_transformers_hidden_states(family):
    (clip,) = media(9_000)
    weights = torch.tensor([0.3, -1.0, 0.7])
    for layer in (-3, -2, -1, 0, 1, 2, "weighted"):
        encoder = build(family, layer=layer)
        found = theirs(encoder, clip, output_hidden_states=True)
        states = torch.stack([*found.hidden_states[:-1], found.last_hidden_state])[:, 0]  # (N + 1, T, D)
        if layer == "weighted":
            encoder.layer_mix.weights.data.copy_(weights)
            expected = (weights.softmax(0)[:, None, None] * states).sum(0)
        else:
            expected = states[layer]
        out = encode(encoder, [clip])
        torch.testing.assert_close(out.values[0], expected[: out.lengths[0]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_what_transformers_supports(family):
    encoder = configure(family).build(BuildContext())
    expected = "sdpa" if type(encoder.model)._supports_sdpa else "eager"
    assert encoder.model.config._attn_implementation == expected
    assert (expected == "eager") == (family in ("wavlm", "sew-d", "speech_to_text"))


def test_eager_attention():
    for family in ("wav2vec2", "wav2vec2-group", "whisper"):
        clips = media(9_000, 2_500)
        one, other = (encode(build(family, attention), clips).values for attention in ("auto", "eager"))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 4_000), max_size=4), family=st.sampled_from(list(FAMILIES)))
def test_declared_lengths_are_the_real_ones(lengths, family):
    config = configure(family)
    encoder = BUILT.setdefault(family, build(family))
    out = encode(encoder, media(*lengths))
    declared = [config.output_lengths(length) for length in lengths]
    assert out.lengths.tolist() == declared
    assert out.values.shape == (len(lengths), max(declared, default=0), config.hidden_size)
    assert out.values.isfinite().all()
    assert config.output_lengths(np.array(lengths, dtype=np.int64)).tolist() == declared


BUILT = {}


def test_rates_and_sizes():
    expected = {"wav2vec2": (32, 50), "wav2vec2-adapter": (24, 12.5), "whisper": (32, 50), "speech_to_text": (32, 25)}
    expected |= {"wav2vec2-bert": (32, 50), "wav2vec2-bert-adapter": (32, 12.5)}
    for family, (width, rate) in expected.items():
        config = configure(family)
        assert (config.hidden_size, config.frame_rate, config.num_layers) == (width, rate, 2)
    assert configure("moonshine").frame_rate * 384 == 16_000


def test_audio_longer_than_the_window_is_cut():
    encoder = build("whisper")
    (clip,) = media(40_000)
    out = encode(encoder, [clip])
    parts = []
    for start in (0, 16_000, 32_000):
        part = Medium(clip.values[start : start + 16_000], 16_000)
        parts.append(theirs(encoder, part).last_hidden_state[0, : encoder.config.output_lengths(part.num_samples)])
    torch.testing.assert_close(out.values[0], torch.cat(parts), atol=1e-5, rtol=1e-5)


def test_what_is_encoded_apart_is_said(caplog):
    with caplog.at_level(logging.INFO):
        configure("wav2vec2-group").build(BuildContext(component="audio_encoder"))
        assert "audio_encoder encodes the clips of each length apart: a 'wav2vec2'" in caplog.text
        caplog.clear()
        configure("wav2vec2").build(BuildContext(component="audio_encoder"))
        assert not caplog.text


def test_clips_of_one_length_share_a_call(monkeypatch):
    encoder = build("wav2vec2-group")
    calls = []
    run = encoder._run
    monkeypatch.setattr(encoder, "_run", lambda values, mask: calls.append(values.shape) or run(values, mask))
    encode(encoder, media(9_000, 2_500, 9_000, 100))
    assert calls == [(1, 2_500), (2, 9_000)]


@pytest.mark.parametrize("family", ["speech_to_text", "moonshine", "wav2vec2-conformer", "wav2vec2-bert"])
def test_positions_beside_the_weights_are_restored(family, monkeypatch):
    clips = media(9_000)
    encoder = build(family)
    expected = encode(encoder, clips).values
    for name, buffer in encoder.model.named_buffers():
        if name not in encoder.model.state_dict():
            buffer.fill_(torch.nan)
    again = []
    make = encoder._build
    monkeypatch.setattr(encoder, "_build", lambda *args: again.append(make(*args)) or again[-1])
    encoder.reset_buffers()
    torch.testing.assert_close(encode(encoder, clips).values, expected, atol=0, rtol=0)
    assert bool(again) == (family != "wav2vec2-bert"), "built again where anything is lost"
    assert all(one.is_meta for model in again for one in model.parameters()), "the weights take their memory again"
    assert not any(parameter.is_meta for parameter in build(family).model.parameters())


@pytest.mark.parametrize(
    ("family", "options", "drops"),
    [
        ("wav2vec2", {}, True),
        ("wav2vec2-post-norm", {"layer": 1}, True),
        ("wavlm", {}, True),
        ("wav2vec2-bert-adapter", {}, True),
        ("wav2vec2", {"layer": "weighted"}, False),  # a sum takes the states as transformers lists them
    ],
)
def test_layers_are_left_out_of_the_output_and_not_of_the_graph(family, options, drops, monkeypatch):
    model_type, numbers, batching = FAMILIES[family]
    still = dict.fromkeys(("attention_dropout", "hidden_dropout", "activation_dropout", "conformer_conv_dropout"), 0.0)
    monkeypatch.setitem(FAMILIES, family, (model_type, {**numbers, **still, "layerdrop": 1.0}, batching))
    encoder = build(family, **options)
    inputs = encoder.config.build_preprocessor()(media(9_000, 5_000))
    expected = encoder(inputs).values
    encoder.model.encoder.layers.train()
    out = encoder(inputs).values
    assert out.shape == expected.shape
    assert torch.equal(out, expected) != drops
    (out * torch.randn(out.shape)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) != (drops and "encoder.layers" in name), name


@pytest.mark.parametrize(
    ("family", "layer", "reason"),
    [
        ("wav2vec2", "weighted", "`layer: weighted` takes the states of all of them"),
        ("sew", -1, "where the layers of a 'sew' are is not known"),
        ("wav2vec2", 1, None),
    ],
)
def test_a_layerdrop_without_effect_is_said_once(family, layer, reason, monkeypatch, caplog):
    model_type, numbers, batching = FAMILIES[family]
    monkeypatch.setitem(FAMILIES, family, (model_type, {**numbers, "layerdrop": 0.25}, batching))
    with caplog.at_level(logging.INFO):
        encoder = configure(family, layer=layer).build(BuildContext(component="audio_encoder"))
        encoder.reset_buffers()
        encoder.train()(encoder.config.build_preprocessor()(media(9_000)))
    said = f"audio_encoder leaves no layers out at training, although its layerdrop is 0.25: {reason}"
    assert [record.getMessage() for record in caplog.records if "layerdrop" in record.getMessage()] == (
        [said] if reason else []
    )


def test_spec_augment_is_off_unless_asked_for():
    assert not hasattr(build("wav2vec2").model, "masked_spec_embed")
    encoder = build("wav2vec2", apply_spec_augment=True)
    assert hasattr(encoder.model, "masked_spec_embed")


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({}, "expected a `model_type` under `model:`"),
        ({"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 5}, "it takes tokens"),
        (
            {"model_type": "audio-spectrogram-transformer", "patch_size": 16},
            "patches, so that its frames do not follow",
        ),
        ({"model_type": "encodec", "codebook_size": 1024}, "it is a codec"),
        ({"model_type": "clap", "audio_config": {}}, "several models; name the audio encoder alone"),
        ({"model_type": "parakeet_encoder", "num_mel_bins": 80}, "does not say how its front end changes their rate"),
        ({"model_type": "speecht5", "is_encoder_decoder": True, **COMMON}, "an encoder-decoder"),
        ({"model_type": "vit_of_sound", "hidden_size": 32}, "states no convolutions"),
        ({"model_type": "wav2vec2", **COMMON, "conv_kernel": [3]}, "must be equally long, got 3, 1 and 3"),
        (
            {"model_type": "wav2vec2", **COMMON, "conv_kernel": "3"},
            "list of positive numbers `conv_kernel`.* got '3'",
        ),
        (
            {"model_type": "wav2vec2", **COMMON, "hidden_size": 0},
            "a positive number `hidden_size` under `model:`, got 0",
        ),
        ({"model_type": "whisper"}, "a positive number `num_mel_bins` under `model:`, got None"),
    ],
)
def test_models_that_cannot_be_taken(numbers, reason):
    with pytest.raises(ConfigError, match=reason):
        front_end_of(numbers)
    with pytest.raises(ValidationError):
        HFAudioEncoderConfig.model_validate({"model": numbers or {"hidden_size": 1}})


@pytest.mark.parametrize(
    ("family", "data", "message"),
    [
        ("wav2vec2", {"layer": 3}, "layer must be between -3 and 2"),
        (
            "sew",
            {"layer": 1},
            "layer 1 .* 'sew' cannot be had: its inner layers run at another rate",
        ),
        ("wav2vec2-adapter", {"layer": "weighted"}, "layer 'weighted' .* cannot be had: its adapter"),
        ("whisper", {"chunk_seconds": 1.5}, "at most the window of 1 s"),
        ("whisper", {"feature_extractor": {"feature_size": 80}}, "feature_size is 80, but the model takes 16"),
        ("whisper", {"feature_extractor": {"hop_length": 80}}, "hop of 80 samples at 16000 Hz, expected 160"),
        (
            "wav2vec2",
            {"feature_extractor": {"feature_extractor_type": "WhisperFeatureExtractor"}},
            "'WhisperFeatureExtractor', but a model of the type 'wav2vec2' takes",
        ),
        ("wav2vec2", {"feature_extractor": {"sampling_rate": 0}}, "a positive sampling_rate"),
    ],
)
def test_configurations_that_cannot_be(family, data, message):
    with pytest.raises(ValidationError, match=message):
        configure(family, **data)


def test_models_that_transformers_does_not_know():
    with pytest.raises(ConfigError, match="transformers has no model of the type 'wav3vec'"):
        HFAudioEncoderConfig.model_validate({"model": {"model_type": "wav3vec", **COMMON}}).build(BuildContext())
    with pytest.raises(ConfigError, match="makes no 'wav2vec2'"):
        HFAudioEncoderConfig.model_validate(
            {"model": {"model_type": "wav2vec2", **COMMON, "feat_extract_norm": "none"}}
        ).build(BuildContext())


def test_a_rate_that_the_configuration_does_not_tell(monkeypatch):
    encoder = build("wav2vec2")
    encoder.model.feature_extractor.conv_layers[1].conv.stride = (3,)
    with pytest.raises(ConfigError, match=r"gave \d+ frames of width 32 for an input of 9000 steps, expected 28 of 32"):
        encode(encoder, media(9_000))


def test_another_sampling_rate():
    config = configure("wav2vec2", feature_extractor={"sampling_rate": 8_000})
    assert (config.sampling_rate, config.frame_rate) == (8_000, 25)
    assert config.build_preprocessor()([Medium(torch.zeros(8_000), 8_000)])["input_values"].shape == (1, 8_000)


def test_a_configuration_without_arguments():
    config = HFAudioEncoderConfig()
    assert config.frame_rate == 50
    assert HFAudioEncoderConfig.model_validate(config.model_dump(mode="json")) == config
