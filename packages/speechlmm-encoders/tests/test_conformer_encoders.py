"""The conformer encoders against transformers on single clips without padding."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from transformers import SeamlessM4TFeatureExtractor, SeamlessM4Tv2Config, Wav2Vec2BertConfig, Wav2Vec2BertModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder

from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.media.medium import Medium
from speechlmm_encoders.relative_key import by_distance

SEAMLESS = {
    "type": "seamless",
    "model": {
        "hidden_size": 32,
        "feature_projection_input_dim": 16,
        "speech_encoder_layers": 3,
        "speech_encoder_attention_heads": 2,
        "speech_encoder_intermediate_size": 32,
        "conv_depthwise_kernel_size": 5,
        "left_max_position_embeddings": 4,
        "right_max_position_embeddings": 2,
    },
}
W2V_BERT = {
    "type": "w2v_bert_2",
    "model": {
        "hidden_size": 32,
        "feature_projection_input_dim": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_depthwise_kernel_size": 5,
        "left_max_position_embeddings": 4,
        "right_max_position_embeddings": 2,
    },
}
ADAPTER = {"add_adapter": True, "output_hidden_size": 24, "use_intermediate_ffn_before_adapter": True}


def changed(data: dict[str, Any], **numbers: Any) -> dict[str, Any]:
    return {**data, "model": {**data["model"], **numbers}}


KINDS = {
    "seamless": SEAMLESS,
    "seamless_chunks": changed(SEAMLESS, speech_encoder_chunk_size=7, speech_encoder_left_chunk_num=1),
    "seamless_own_chunk": changed(SEAMLESS, speech_encoder_chunk_size=16, speech_encoder_left_chunk_num=0),
    "seamless_chunks_all_before": changed(SEAMLESS, speech_encoder_chunk_size=7, speech_encoder_left_chunk_num=-1),
    "seamless_kernel": changed(SEAMLESS, adaptor_kernel_size=5, adaptor_stride=4),
    "seamless_without_adapter": changed(SEAMLESS, add_adapter=False),
    "w2v_bert_2": W2V_BERT,
    "w2v_bert_2_adapter": changed(W2V_BERT, **ADAPTER),
    "w2v_bert_2_two_adapter_layers": changed(W2V_BERT, add_adapter=True, num_adapter_layers=2),
}
SAMPLES = (16_000, 560, 721, 20_001, 7_777, 30_000)


def media(*lengths: int) -> list[Medium]:
    generator = torch.Generator().manual_seed(sum(lengths))
    clips: list[Medium] = []
    for length in lengths:
        loudness = torch.linspace(-4, -1, length).exp()
        clips.append(Medium(torch.randn(length, generator=generator) * loudness, 16_000))
    return clips


def build(data, attention="auto", **options):
    torch.manual_seed(0)
    encoder = encoders.validate({**data, **options}).build(BuildContext(attn_implementation=attention)).eval()
    with torch.no_grad():  # norms and biases at their start would hide a missing scale or shift
        for name, parameter in encoder.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
            elif "distance" in name:
                parameter.normal_()
    return encoder


@pytest.fixture(scope="module", params=KINDS)
def encoder(request):
    return build(KINDS[request.param])


def encode(encoder, clips):
    with torch.no_grad():
        return encoder(encoder.config.build_preprocessor()(clips))


def ours(encoder, clip):
    """The features of a clip; that they are transformers' is tested elsewhere."""
    return encoder.config.build_preprocessor()([clip])["input_features"]


def extract(clip):
    extractor = SeamlessM4TFeatureExtractor(feature_size=8, num_mel_bins=8)
    return extractor(
        clip.values.numpy(), sampling_rate=16_000, return_tensors="pt", pad_to_multiple_of=None
    ).input_features


def theirs(encoder):
    """The module of transformers with the same weights.

    Not with eager attention, where it adds the boolean mask of chunks to the scores.
    """
    numbers = encoder.config.architecture.model_dump()
    if encoder.config.type == "seamless":
        model: Any = SeamlessM4Tv2SpeechEncoder(SeamlessM4Tv2Config(**numbers, attn_implementation="sdpa"))
    else:
        numbers["mask_time_prob"] = 0.0
        model = Wav2Vec2BertModel(Wav2Vec2BertConfig(**numbers, attn_implementation="sdpa"))
    found = model.load_state_dict(encoder.model.state_dict(), strict=False)
    assert not found.unexpected_keys  # layers above the wanted one are missing
    return model.eval()


def check_alone(encoder, clips, out):
    reference = theirs(encoder)
    for clip, values, length in zip(clips, out.values, out.lengths, strict=True):
        with torch.no_grad():
            expected = reference(ours(encoder, clip)).last_hidden_state[0]
        assert len(expected) == length
        torch.testing.assert_close(values[:length], expected, atol=1e-5, rtol=1e-5)
        assert not values[length:].any()


def test_a_padded_batch_equals_transformers_on_each_clip_alone(encoder):
    clips = media(*SAMPLES)
    check_alone(encoder, clips, encode(encoder, clips))
    check_alone(encoder, clips[1:2], encode(encoder, clips[1:2]))


@pytest.mark.parametrize("kind", ["seamless", "w2v_bert_2"])
def test_from_samples_to_frames_as_in_transformers(kind):
    encoder = build(KINDS[kind])
    clips = media(16_000, 9_000)
    for clip, values, length in zip(clips, (out := encode(encoder, clips)).values, out.lengths, strict=True):
        with torch.no_grad():
            expected = theirs(encoder)(extract(clip)).last_hidden_state[0]
        torch.testing.assert_close(values[:length], expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["seamless", "seamless_chunks", "w2v_bert_2_adapter"])
def test_eager_attention(kind):
    encoder = build(KINDS[kind], "eager")
    assert encoder.model.config._attn_implementation == "eager"
    clips = media(9_000, 21_000)
    check_alone(encoder, clips, encode(encoder, clips))


@pytest.mark.parametrize("samples", [560, 1_600, 9_000])
@pytest.mark.parametrize("kind", ["seamless", "seamless_chunks", "w2v_bert_2_adapter"])
def test_gradients_equal_those_of_transformers(kind, samples):
    encoder = build(KINDS[kind])
    reference = theirs(encoder)
    (clip,) = media(samples)
    expected = reference(ours(encoder, clip)).last_hidden_state
    direction = torch.randn(expected.shape)
    (expected * direction).sum().backward()
    other = media(12_000)[0]
    got = encoder(encoder.config.build_preprocessor()([other, clip])).values[1:, : expected.shape[1]]
    (got * direction).sum().backward()
    gradients = dict(encoder.model.named_parameters())
    for name, parameter in reference.named_parameters():
        scale = max(1.0, float(parameter.grad.abs().max()))
        torch.testing.assert_close(gradients[name].grad / scale, parameter.grad / scale, atol=1e-5, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(num_frames=st.integers(1, 20), left=st.integers(1, 25), right=st.integers(1, 25))
def test_scores_stand_where_their_distance_is(num_frames, left, right):
    scores = torch.randn(2, 3, num_frames, left + 1 + right)
    got = by_distance(scores, left, right)
    assert got.shape == (2, 3, num_frames, num_frames)
    for query in range(num_frames):
        for key in range(num_frames):
            place = max(-left, min(right, key - query)) + left
            assert torch.equal(got[:, :, query, key], scores[:, :, query, place])


@pytest.mark.parametrize("kind", ["seamless", "w2v_bert_2"])
def test_attention_that_cannot_be_had_is_replaced_by_what_can(kind):
    for requested in ("auto", "sdpa", "flash_attention_2"):
        assert build(KINDS[kind], requested).model.config._attn_implementation == "sdpa"


def states_of(reference, features):
    """The conformer's input and what each of its layers puts out."""
    states: list[torch.Tensor] = []
    first = reference.encoder.layers[0]
    hooks = [first.register_forward_pre_hook(lambda _, args: states.append(args[0]))]
    hooks += [one.register_forward_hook(lambda *args: states.append(args[2])) for one in reference.encoder.layers]
    with torch.no_grad():
        reference(features)
    for hook in hooks:
        hook.remove()
    if hasattr(reference.encoder, "layer_norm"):
        states[-1] = reference.encoder.layer_norm(states[-1]).detach()
    return states


class Given(nn.Module):
    """In the place of a conformer encoder: puts out what it is given."""

    def __init__(self, state, wrapped):
        super().__init__()
        self.state, self.wrapped = state, wrapped

    def forward(self, *args, **kwargs):
        return BaseModelOutput(last_hidden_state=self.state) if self.wrapped else self.state


@pytest.mark.parametrize("kind", ["seamless", "w2v_bert_2", "w2v_bert_2_adapter"])
@pytest.mark.parametrize("layer", [-4, -3, -2, -1, 0, 1, 2, 3, "weighted"])
def test_the_state_chosen_takes_the_place_of_the_last(kind, layer):
    (clip,) = media(8_000)
    encoder = build(KINDS[kind], layer=layer)
    reference = theirs(encoder)
    states = states_of(reference, ours(encoder, clip))
    if layer == "weighted":
        encoder.layer_mix.weights.data = torch.tensor([0.3, -1.0, 2.0, 0.5])
        shares = torch.tensor([0.3, -1.0, 2.0, 0.5]).exp()
        state = sum(share * one for share, one in zip(shares / shares.sum(), states, strict=True))
    else:
        state = states[layer]
    reference.encoder = Given(state, wrapped=encoder.config.type == "w2v_bert_2")
    with torch.no_grad():
        expected = reference(ours(encoder, clip)).last_hidden_state
    torch.testing.assert_close(encode(encoder, [clip]).values, expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(num_samples=st.integers(0, 30_000), kind=st.sampled_from(list(KINDS)))
def test_lengths_are_those_of_the_convolutions(num_samples, kind):
    config = encoders.validate(KINDS[kind])
    expected = len(range(0, num_samples - 399, 160)) // 2
    numbers = config.architecture
    if numbers.add_adapter:
        kernel_size, stride = (5, 4) if kind == "seamless_kernel" else (8, 8) if "seamless" in kind else (3, 2)
        for _ in range(numbers.num_adapter_layers):
            convolution = nn.Conv1d(1, 1, kernel_size, stride=stride, padding=stride // 2)
            padded = expected + 2 * (stride // 2)
            expected = convolution(torch.zeros(1, expected)).shape[1] if expected and padded >= kernel_size else 0
    assert config.output_lengths(num_samples) == expected
    assert config.output_lengths(np.array([num_samples])).tolist() == [expected]
    assert config.output_lengths(torch.tensor([num_samples])).tolist() == [expected]


def test_lengths_are_those_that_transformers_computes_from_masks(encoder):
    model, config = encoder.model, encoder.config
    frames = torch.arange(1, 60)
    mask = torch.arange(60)[None] < frames[:, None]
    if config.type == "w2v_bert_2":
        expected = model._get_feat_extract_output_lengths(mask.sum(1))
    elif config.convolutions:
        expected = model._compute_sub_sample_lengths_from_attention_mask(mask)
    else:
        expected = frames
    assert config.adapter_lengths(frames)[-1].tolist() == expected.long().tolist()


def test_no_frame_and_one_frame(encoder):
    width = encoder.config.hidden_size
    assert encode(encoder, []).values.shape == (0, 0, width)
    assert encode(encoder, media(0)).values.shape == (1, 0, width)
    assert encode(encoder, media(559, 100)).values.shape == (2, 0, width)
    out = encode(encoder, media(559, 16_000, 0))
    assert out.lengths.tolist() == [0, encoder.config.output_lengths(16_000), 0]
    assert out.values.isfinite().all()
    assert not out.values[::2].any()
    check_alone(encoder, clips := media(1_000), encode(encoder, clips))


def test_what_padding_holds_does_not_matter(encoder):
    inputs = encoder.config.build_preprocessor()(media(20_000, 5_000))
    with torch.no_grad():
        expected = encoder(inputs).values
        inputs["input_features"][1, inputs["lengths"][1] :] = float("nan")
        assert torch.equal(encoder(inputs).values, expected)


@pytest.mark.parametrize("kind", ["seamless", "w2v_bert_2", "w2v_bert_2_adapter", "w2v_bert_2_two_adapter_layers"])
def test_long_audio_in_chunks_equals_the_whole_away_from_the_seams(kind):
    """Without the values of the attention all that is left is local, and five frames reach far enough."""
    encoder = build(KINDS[kind])
    cut = build(KINDS[kind], chunk_seconds=2.4, chunk_overlap_seconds=0.8)
    for module in (encoder, cut):
        for name, parameter in module.named_parameters():
            if "self_attn.linear_v.weight" in name:
                nn.init.zeros_(parameter)
    clips = media(100_000, 38_400, 38_399, 560, 70_001)
    expected, got = encode(encoder, clips), encode(cut, clips)
    assert len(cut.config.build_preprocessor()(clips)["lengths"]) > len(clips)
    assert got.lengths.tolist() == expected.lengths.tolist()
    for values, whole, length in zip(got.values, expected.values, got.lengths, strict=True):
        torch.testing.assert_close(values[:length], whole[:length], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["seamless", "w2v_bert_2", "w2v_bert_2_adapter"])
def test_chunks_equal_transformers_window_by_window(kind, overlap):
    encoder = build(KINDS[kind], chunk_seconds=1.6, chunk_overlap_seconds=overlap)
    hop = int(16_000 / encoder.config.frame_rate)
    context = max(-(-int(overlap * 16_000) // hop), 1 if kind == "seamless" else 0)
    clips = media(60_000)
    out = encode(encoder, clips)
    features, reference = ours(build(KINDS[kind]), clips[0]), theirs(encoder)
    pieces, start, done = [], 0, 0
    total = encoder.config.output_lengths(60_000)
    while done < total:
        part = features[:, start * hop // 320 :][:, : (25_600 - 400 + 160) // 160 // 2]
        with torch.no_grad():
            hidden = reference(part).last_hidden_state[0]
        last = start + len(hidden) >= total
        pieces.append(hidden[context if start else 0 : len(hidden) if last else len(hidden) - context])
        done += len(pieces[-1])
        start += len(hidden) - 2 * context
    torch.testing.assert_close(out.values[0], torch.cat(pieces), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_comes_from_a_chunk_that_has_it(kind, overlap):
    config = encoders.validate({**KINDS[kind], "chunk_seconds": 1.3, "chunk_overlap_seconds": overlap})
    for num_samples in range(0, 70_000, 79):
        kept = 0
        for one in config.chunker.split(num_samples):
            assert 0 <= one.keep_from <= one.keep_until <= config.output_lengths(one.end - one.start)
            assert one.start // config.hop + one.keep_from == kept
            kept += one.keep_until - one.keep_from
        assert kept == config.output_lengths(num_samples)


@pytest.mark.parametrize(
    "data",
    [
        changed(SEAMLESS, speech_encoder_dropout=0.5, speech_encoder_layerdrop=0.5, adaptor_dropout=0.5),
        changed(W2V_BERT, **ADAPTER, layerdrop=0.5, conformer_conv_dropout=0.5, attention_dropout=0.5),
        {**changed(W2V_BERT, mask_time_prob=0.5), "apply_spec_augment": True},
    ],
)
def test_dropout_and_masking_act_at_training_only(data):
    encoder = build(data)
    inputs = encoder.config.build_preprocessor()(media(16_000, 9_000))
    expected = encoder(inputs)
    assert torch.equal(encoder(inputs).values, expected.values)
    encoder.train()
    assert not torch.equal(encoder(inputs).values, encoder(inputs).values)
    encoder.requires_grad_(False).eval()
    torch.testing.assert_close(encoder(inputs).values, expected.values, atol=1e-5, rtol=1e-5)


def test_no_adapter_layer_is_dropped_at_training():
    """Transformers drops whole layers of this adapter too, and the lengths then no longer hold."""
    encoder = build(changed(W2V_BERT, **ADAPTER, layerdrop=1.0)).train()
    out = encoder(encoder.config.build_preprocessor()(media(16_000)))
    assert out.values.shape == (1, 25, 24)


def test_spec_augment_masks_valid_frames_only_and_skips_short_clips():
    encoder = build({**changed(W2V_BERT, mask_time_prob=0.9, mask_time_length=4), "apply_spec_augment": True}, layer=0)
    inputs = encoder.config.build_preprocessor()(media(16_000, 2_000))
    expected = encoder(inputs).values
    out = encoder.train()(inputs)
    masked = (out.values - encoder.model.masked_spec_embed).abs().amax(2) < 1e-6  # (B, T)
    assert masked.any()
    assert not masked[1, out.lengths[1] :].any()
    torch.testing.assert_close(out.values[~masked], expected[~masked], atol=1e-5, rtol=0)
    short = encoder.config.build_preprocessor()(media(1_000))
    assert encoder(short).values.shape == (1, 2, 32)


def test_bfloat16_keeps_padding_out(encoder):
    module = build(encoder.config.model_dump(mode="json")).to(torch.bfloat16)
    clips = media(16_000, 5_000)
    both = encode(module, clips)
    assert both.values.dtype == torch.bfloat16
    alone = encode(module, clips[1:])
    length = int(alone.lengths[0])
    torch.testing.assert_close(both.values[1, :length], alone.values[0], atol=0.1, rtol=0.05)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "seamless", "layer": 25}, "layer must be between -25 and 24"),
        ({"type": "seamless", "chunk_seconds": 0.3}, "keeps nothing"),
        (
            {"type": "seamless", "model": {"speech_encoder_attention_heads": 3}},
            "widths must be multiples .* got 1024 and 3",
        ),
        ({"type": "seamless", "model": {"conv_depthwise_kernel_size": 30}}, "must be odd, got 30"),
        ({"type": "seamless", "model": {"feature_projection_input_dim": 81}}, "multiple of 2"),
        ({"type": "seamless", "model": {"position_embeddings_type": "rotary"}}, "relative_key"),
        ({"type": "w2v_bert_2", "model": {"num_attention_heads": 3}}, "widths must be multiples .* got 1024 and 3"),
        ({"type": "w2v_bert_2", "model": {"conv_depthwise_kernel_size": 30}}, "must be odd, got 30"),
        ({"type": "w2v_bert_2", "model": {"use_intermediate_ffn_before_adapter": True}}, "needs add_adapter"),
        (
            {"type": "w2v_bert_2", "model": {"add_adapter": True, "output_hidden_size": 40}},
            "widths must be multiples .* got 40 and 16",
        ),
    ],
)
def test_configurations_that_cannot_be(data, message):
    with pytest.raises(ValidationError, match=message):
        encoders.validate(data)


def test_published_numbers_by_default():
    seamless, w2v_bert = encoders.validate({"type": "seamless"}), encoders.validate({"type": "w2v_bert_2"})
    assert (seamless.hidden_size, seamless.sampling_rate, seamless.frame_rate) == (1024, 16_000, Fraction(25, 4))
    assert (w2v_bert.hidden_size, w2v_bert.sampling_rate, w2v_bert.frame_rate) == (1024, 16_000, 50)
    assert [seamless.output_lengths(n) for n in (0, 559, 560, 2_560, 5_120, 480_000)] == [0, 0, 1, 1, 2, 188]
    assert [w2v_bert.output_lengths(n) for n in (559, 560, 879, 880, 480_000)] == [0, 1, 1, 2, 1499]
