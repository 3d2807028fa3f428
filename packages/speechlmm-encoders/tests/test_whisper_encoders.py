"""Both Whisper encoders against transformers' own, and what holds for every length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from speechlmm_core.errors import MediaError
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.media.medium import Medium
from speechlmm_encoders.whisper.config import UnrestrictedWhisperEncoderConfig, WhisperEncoderConfig
from speechlmm_encoders.whisper.encoder import sinusoids

NUMBERS = {
    "num_mel_bins": 16,
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "max_source_positions": 100,
}
"""Windows of 100 frames: 2 s."""
SECONDS = 2


def media(*lengths: int) -> list[Medium]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [Medium(torch.randn(length, generator=generator) * 0.1, 16_000) for length in lengths]


def build(config, **context):
    torch.manual_seed(0)
    return config.build(BuildContext(**context)).eval()


def encode(encoder, clips):
    with torch.no_grad():
        return encoder(encoder.config.build_preprocessor()(clips))


def theirs(encoder, **options):
    """Transformers' whole Whisper with the encoder's weights."""
    config = WhisperConfig(**{**NUMBERS, **options}, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8)
    model = WhisperModel(config).eval()
    found = model.get_encoder().load_state_dict(encoder.model.state_dict(), strict=False)
    assert not found.unexpected_keys  # layers above the wanted one are missing
    return model.get_encoder()


def extract(clip: Medium):
    extractor = WhisperFeatureExtractor(feature_size=NUMBERS["num_mel_bins"], chunk_length=SECONDS)
    return extractor(clip.values.numpy(), sampling_rate=16_000, return_tensors="pt").input_features


@pytest.fixture(scope="module")
def windowed():
    return build(WhisperEncoderConfig.model_validate({"model": NUMBERS}))


@pytest.fixture(scope="module")
def unrestricted():
    return build(UnrestrictedWhisperEncoderConfig.model_validate({"model": NUMBERS}))


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_windows_equal_transformers(attention):
    encoder = build(WhisperEncoderConfig.model_validate({"model": NUMBERS}), attn_implementation=attention)
    clips = media(32_000, 5000, 31_999, 161)
    out = encode(encoder, clips)
    reference = theirs(encoder)
    assert out.lengths.tolist() == [100, 16, 100, 1]
    for clip, values, length in zip(clips, out.values, out.lengths, strict=True):
        with torch.no_grad():
            expected = reference(extract(clip)).last_hidden_state[0]
        torch.testing.assert_close(values[:length], expected[:length], atol=2e-5, rtol=0)
        assert not values[length:].any()


def test_the_padding_s_frames_can_be_kept():
    encoder = build(WhisperEncoderConfig.model_validate({"model": NUMBERS, "keep_padding": True}))
    clips = media(5000, 32_000)
    out = encode(encoder, clips)
    assert out.lengths.tolist() == [100, 100]
    with torch.no_grad():
        expected = theirs(encoder)(extract(clips[0])).last_hidden_state[0]
    torch.testing.assert_close(out.values[0], expected, atol=2e-5, rtol=0)
    long = encode(encoder, media(5000, 64_001))
    assert long.lengths.tolist() == [100, 300]
    assert [encoder.config.output_lengths(n) for n in (0, 5000, 32_000, 64_000, 64_001)] == [0, 100, 100, 200, 300]


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_unrestricted_equals_transformers_on_a_whole_window(attention):
    encoder = build(UnrestrictedWhisperEncoderConfig.model_validate({"model": NUMBERS}), attn_implementation=attention)
    clips = media(32_000, 4800)
    out = encode(encoder, clips)
    with torch.no_grad():
        expected = theirs(encoder)(extract(clips[0])).last_hidden_state[0]
    torch.testing.assert_close(out.values[0], expected, atol=2e-5, rtol=0)


def test_unrestricted_equals_a_transformers_encoder_made_for_the_clip_s_length(unrestricted):
    """Transformers' encoder with as many positions as the clip has frames takes it without padding."""
    for samples in (16_000, 80_000):
        frames = samples // 320
        (clip,) = media(samples)
        config = WhisperConfig(
            **{**NUMBERS, "max_source_positions": frames},
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=8,
        )
        reference = WhisperModel(config).eval().get_encoder()
        own = unrestricted.model.state_dict()
        own["embed_positions.weight"] = reference.embed_positions.weight
        reference.load_state_dict(own)
        extractor = WhisperFeatureExtractor(feature_size=NUMBERS["num_mel_bins"])
        features = extractor(clip.values.numpy(), sampling_rate=16_000, return_tensors="pt", padding="longest")
        with torch.no_grad():
            expected = reference(features.input_features).last_hidden_state[0]
        out = encode(unrestricted, [clip])
        torch.testing.assert_close(out.values[0], expected, atol=2e-5, rtol=0)


def test_positions_continue_the_checkpoint_s_own():
    model = WhisperModel(
        WhisperConfig(**NUMBERS, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8)
    ).get_encoder()
    ours = sinusoids(0, 100, 32, torch.device("cpu"))
    torch.testing.assert_close(ours, model.embed_positions.weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(sinusoids(60, 100, 32, torch.device("cpu")), ours[60:])


@pytest.mark.parametrize("name", ["windowed", "unrestricted"])
def test_a_clip_s_frames_do_not_depend_on_its_batch(name, request):
    encoder = request.getfixturevalue(name)
    clips = media(20_000, 100, 0, 32_000, 9_999, 45_000)
    out = encode(encoder, clips)
    for clip, values, length in zip(clips, out.values, out.lengths, strict=True):
        assert length == encoder.config.output_lengths(clip.num_samples)
        alone = encode(encoder, [clip])
        assert alone.values.shape[1] == length
        torch.testing.assert_close(values[:length], alone.values[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["windowed", "unrestricted"])
def test_what_stands_in_the_padding_has_no_influence(name, request):
    encoder = request.getfixturevalue(name)
    inputs = encoder.config.build_preprocessor()(media(20_000, 5000))
    valid = torch.arange(inputs["input_features"].shape[2]) < inputs["lengths"][:, None] + 2 * (name == "windowed")
    spoilt = {**inputs, "input_features": inputs["input_features"].masked_fill(~valid[:, None], torch.nan)}
    with torch.no_grad():
        torch.testing.assert_close(encoder(spoilt).values, encoder(inputs).values, rtol=0, atol=0)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12_000), max_size=4),
    strides=st.sampled_from([(1, 2), (2, 2), (1, 1), (3, 2)]),
    kind=st.sampled_from([WhisperEncoderConfig, UnrestrictedWhisperEncoderConfig]),
)
def test_declared_lengths_are_the_real_ones(lengths, strides, kind):
    config = kind.model_validate({"model": {**NUMBERS, "max_source_positions": 20}, "conv_strides": strides})
    encoder = build(config)
    out = encode(encoder, media(*lengths))
    declared = [config.output_lengths(length) for length in lengths]
    assert out.lengths.tolist() == declared
    assert out.values.shape == (len(lengths), max(declared, default=0), 32)
    assert config.frame_rate * config.hop == 16_000
    if lengths:
        assert config.output_lengths(torch.tensor(lengths)).tolist() == declared
    if out.values.numel():
        assert out.values.isfinite().all()


def test_strides_give_25_hz():
    config = UnrestrictedWhisperEncoderConfig.model_validate({"model": NUMBERS, "conv_strides": [2, 2]})
    assert config.frame_rate == 25
    assert [config.output_lengths(n) for n in (16_000, 640, 641)] == [25, 1, 2]
    encoder = build(config)
    assert encode(encoder, media(16_000)).values.shape == (1, 25, 32)


@pytest.mark.parametrize("kind", [WhisperEncoderConfig, UnrestrictedWhisperEncoderConfig])
def test_long_audio_in_chunks_equals_the_whole_before_attention(kind):
    """The convolutions are local: with two frames of context the joined chunks are those of the whole file."""
    common = {"model": NUMBERS, "layer": 0, "position_scale": 0.0}
    whole = build(UnrestrictedWhisperEncoderConfig.model_validate(common))
    cut = build(kind.model_validate({**common, "chunk_seconds": 0.5, "chunk_overlap_seconds": 0.06}))
    clips = media(50_000, 3000, 8000, 8001)
    expected, got = encode(whole, clips), encode(cut, clips)
    assert got.lengths.tolist() == expected.lengths.tolist() == [157, 10, 25, 26]
    for a, b, length in zip(got.values, expected.values, got.lengths, strict=True):
        last = length - 1 if kind is WhisperEncoderConfig else length  # silence follows instead of a mirror
        torch.testing.assert_close(a[:last], b[:last], atol=1e-5, rtol=0)


def test_chunks_equal_transformers_window_by_window(windowed):
    (clip,) = media(70_000)
    out = encode(windowed, [clip])
    reference = theirs(windowed)
    pieces = []
    for start in (0, 32_000, 64_000):
        part = Medium(clip.values[start : start + 32_000], 16_000)
        with torch.no_grad():
            hidden = reference(extract(part)).last_hidden_state[0]
        pieces.append(hidden[: -(-part.num_samples // 320)])
    torch.testing.assert_close(out.values[0], torch.cat(pieces), atol=2e-5, rtol=0)


def test_inner_layers_equal_transformers_hidden_states():
    clips = media(32_000)
    for layer in (-4, -3, -2, -1, 0, 1, 2, 3):
        encoder = build(UnrestrictedWhisperEncoderConfig.model_validate({"model": NUMBERS, "layer": layer}))
        with torch.no_grad():
            states = theirs(encoder)(extract(clips[0]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(encode(encoder, clips).values[0], states[layer][0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["windowed", "unrestricted"])
def test_no_media_at_all(name, request):
    encoder = request.getfixturevalue(name)
    assert encode(encoder, []).values.shape == (0, 0, 32)
    assert encode(encoder, media(0)).values.shape == (1, 0, 32)


@pytest.mark.parametrize("kind", [WhisperEncoderConfig, UnrestrictedWhisperEncoderConfig])
def test_dropout_acts_at_training_only(kind):
    numbers = {**NUMBERS, "dropout": 0.5, "encoder_layerdrop": 0.5, "attention_dropout": 0.5, "activation_dropout": 0.5}
    encoder = build(kind.model_validate({"model": numbers}))
    inputs = encoder.config.build_preprocessor()(media(16_000, 3000))
    assert torch.equal(encoder(inputs).values, encoder(inputs).values)
    encoder.train()
    assert not torch.equal(encoder(inputs).values, encoder(inputs).values)


@pytest.mark.parametrize("kind", [WhisperEncoderConfig, UnrestrictedWhisperEncoderConfig])
def test_only_layers_in_training_mode_are_left_out(kind):
    encoder = build(kind.model_validate({"model": {**NUMBERS, "encoder_layerdrop": 1.0}}))
    inputs = encoder.config.build_preprocessor()(media(16_000))
    whole = encoder(inputs).values
    encoder.train()
    assert not torch.equal(encoder(inputs).values, whole)
    encoder.model.layers.eval()
    assert torch.equal(encoder(inputs).values, whole)


@pytest.mark.parametrize("kind", [WhisperEncoderConfig, UnrestrictedWhisperEncoderConfig])
def test_bf16_and_gradients(kind):
    encoder = build(kind.model_validate({"model": NUMBERS}))
    inputs = encoder.config.build_preprocessor()(media(16_000, 3000))
    encoder(inputs).values.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    assert not encoder.model.embed_positions.weight.requires_grad
    exact = encoder(inputs).values
    rounded = encoder.bfloat16()(inputs).values
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.1, rtol=0.1)


def test_nothing_but_parameters_is_kept(windowed, unrestricted):
    """No buffer can be left as garbage when a checkpoint is loaded."""
    for encoder in (windowed, unrestricted):
        assert not list(encoder.buffers())
        twin = build(encoder.config)
        for parameter in twin.parameters():
            parameter.data.zero_()
        twin.load_state_dict(encoder.state_dict())
        clips = media(7000)
        assert torch.equal(encode(twin, clips).values, encode(encoder, clips).values)


def test_kaiming_convolutions():
    plain = build(UnrestrictedWhisperEncoderConfig.model_validate({"model": NUMBERS}))
    kaiming = build(UnrestrictedWhisperEncoderConfig.model_validate({"model": NUMBERS, "init": "kaiming"}))
    fan_in = NUMBERS["num_mel_bins"] * 3
    assert plain.model.conv1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert kaiming.model.conv1.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (WhisperEncoderConfig, {"chunk_seconds": 31}, "at most the window of 30 s"),
        (WhisperEncoderConfig, {"chunk_overlap_seconds": 15}, "keeps nothing"),
        (WhisperEncoderConfig, {"keep_padding": True, "chunk_seconds": 10}, "whole windows"),
        (UnrestrictedWhisperEncoderConfig, {"layer": 33}, "layer must be between -33 and 32"),
        (
            UnrestrictedWhisperEncoderConfig,
            {"layer": "wieghted"},
            "1 validation error.*\n.*\n.*or `weighted`",
        ),
        (UnrestrictedWhisperEncoderConfig, {"chunk_seconds": 601}, "longer than max_duration_s"),
        (UnrestrictedWhisperEncoderConfig, {"model": {"d_model": 30}}, "multiple of"),
        (UnrestrictedWhisperEncoderConfig, {"model": {"d_modle": 30}}, "d_modle"),
    ],
)
def test_configurations_that_cannot_be(kind, data, message):
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(data)


def test_too_long_for_one_piece():
    config = UnrestrictedWhisperEncoderConfig.model_validate({"model": NUMBERS, "max_duration_s": 1})
    with pytest.raises(MediaError, match=r"1\.5 s, the encoder takes at most 1 s.*set chunk_seconds"):
        config.check_length(24_000)
    with pytest.raises(MediaError, match=r"1\.5 s, the encoder takes at most 1 s"):
        config.build_preprocessor()(media(24_000))
    config.check_length(16_000)
    config.model_copy(update={"chunk_seconds": 1.0}).check_length(24_000)


def test_published_numbers_by_default():
    config = WhisperEncoderConfig()
    assert (config.hidden_size, config.sampling_rate, config.frame_rate, config.window) == (1280, 16_000, 50, 480_000)
    assert config.output_lengths(3 * 16_000) == 150
    assert WhisperEncoderConfig.model_validate(config.model_dump()) == config
