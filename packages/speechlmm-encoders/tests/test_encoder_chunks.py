"""Long audio in chunks, for every audio encoder: joined without a gap, each window as transformers encodes it.

Shapes: L samples, M mel bins, T frames, D hidden.
"""

from __future__ import annotations

from math import ceil

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    Speech2TextFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.media.medium import Medium

RAW = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "conv_dim": [16] * 7}
RAW |= {"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
RAW |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BASE = {**RAW, "do_stable_layer_norm": False, "feat_extract_norm": "group", "conv_bias": False}
LARGE = {**RAW, "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
WHISPER = {"num_mel_bins": 16, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
WHISPER |= {"max_source_positions": 50}
"""Windows of 1 s."""
WHISPER_REST = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8}
SPEECH_TO_TEXT = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
SPEECH_TO_TEXT |= {"input_feat_per_channel": 16, "conv_channels": 32, "conv_kernel_sizes": [5, 5], "pad_token_id": 1}
SPEECH_TO_TEXT |= {"num_conv_layers": 2, "vocab_size": 10, **WHISPER_REST}
RAW_FAMILIES = {
    "hubert-base": ("hubert", BASE),
    "hubert-large": ("hubert", LARGE),
    "wavlm-base": ("wavlm", BASE),
    "wavlm-large": ("wavlm", LARGE),
    "hf_audio-base": ("hf_audio", {"model_type": "wav2vec2", **BASE}),
    "hf_audio-large": ("hf_audio", {"model_type": "wav2vec2", **LARGE}),
}
FAMILIES = {
    **RAW_FAMILIES,
    "whisper": ("whisper", WHISPER),
    "whisper_unrestricted": ("whisper_unrestricted", WHISPER),
    "hf_audio-whisper": ("hf_audio", {"model_type": "whisper", **WHISPER, **WHISPER_REST}),
    "hf_audio-mel": ("hf_audio", {"model_type": "speech_to_text", **SPEECH_TO_TEXT}),
}
GROUP_NORMS = ("hubert-base", "wavlm-base")
"""Their first norm is over the whole clip, as its windows alone are not: they are compared with the whole instead."""
CHUNKS = {"chunk_seconds": 0.8, "chunk_overlap_seconds": 0.1}
LENGTHS = (45_000, 3_000, 12_800, 12_801, 33_333)
"""One in several windows, one in a part of one, one as long as a window and one a sample longer, and an odd one."""


def media(*lengths: int) -> list[Medium]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [Medium(torch.randn(length, generator=generator) * 0.1 + 0.05, 16_000) for length in lengths]


def build(family, **options):
    torch.manual_seed(0)
    kind, numbers = FAMILIES[family]
    return encoders.validate({"type": kind, "model": numbers, **options}).build(BuildContext()).eval()


def encode(encoder, clips):
    with torch.no_grad():
        return encoder(encoder.config.build_preprocessor()(clips))


def their_model(family, encoder, **changes):
    kind, numbers = FAMILIES[family]
    model_type = numbers.get("model_type", "whisper" if "whisper" in kind else kind)
    rest = WHISPER_REST if model_type == "whisper" else {}
    options = {**numbers, **rest, "model_type": model_type, "mask_time_prob": 0.0, **changes}
    model = AutoModel.from_config(AutoConfig.for_model(**options)).eval()
    return model.get_encoder() if model.config.is_encoder_decoder else model, encoder.model.state_dict()


def their_window(family, encoder, clip, start, end):
    """(T, D) of one window of a clip, encoded by transformers alone; features of the whole clip are cut, not audio."""
    audio = {"sampling_rate": 16_000, "return_tensors": "pt"}
    if family in RAW_FAMILIES:
        whole = Wav2Vec2FeatureExtractor()(clip.numpy(), **audio).input_values
        inputs, changes = whole[:, start:end], {}
    elif family == "hf_audio-mel":
        extractor = Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16)
        whole = extractor(clip.numpy(), **audio).input_features
        inputs, changes = whole[:, start // 160 : start // 160 + 1 + (end - start - 400) // 160], {}
    elif family == "whisper_unrestricted":
        extractor = WhisperFeatureExtractor(feature_size=16)
        whole = extractor(clip.numpy(), padding="longest", pad_to_multiple_of=160, **audio).input_features
        inputs = whole[:, :, start // 160 : ceil(end / 160)]
        changes = {"max_source_positions": inputs.shape[2] // 2}
    else:
        extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
        inputs, changes = extractor(clip[start:end].numpy(), **audio).input_features, {}
    model, state = their_model(family, encoder, **changes)
    if changes:
        state["embed_positions.weight"] = state["embed_positions.weight"][: changes["max_source_positions"]]
    model.load_state_dict(state)
    with torch.no_grad():
        return model(inputs).last_hidden_state[0]


def naive(family, encoder, clip):
    """The windows of a clip one after the other, as one would write it down."""
    config = encoder.config
    hop, total = 16_000 // config.frame_rate, config.output_lengths(len(clip))
    window, context = 12_800 // hop * hop, ceil(1_600 / hop)
    size = config.output_lengths(window)  # frames of a whole window
    kept, first = [], 0
    while True:
        start, end = int(first * hop), int(min(len(clip), first * hop + window))
        frames = their_window(family, encoder, clip, start, end)
        is_last = first + size >= total
        until = total - first if is_last else size - context
        kept.append(frames[context if first else 0 : until])
        if is_last:
            return torch.cat(kept)
        first += size - 2 * context


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in GROUP_NORMS])
def test_every_window_is_as_transformers_encodes_it(family):
    encoder = build(family, **CHUNKS)
    # Transformers' Whisper takes an even number of log-mel frames only, so that the odd ones are left to other tests.
    lengths = [ceil(length / 320) * 320 for length in LENGTHS] if family == "whisper_unrestricted" else LENGTHS
    clips = media(*lengths)
    inputs = encoder.config.build_preprocessor()(clips)
    assert len(inputs["lengths"]) > len(clips), "the chunks of all clips are one batch"
    with torch.no_grad():
        out = encoder(inputs)
    assert out.lengths.tolist() == [encoder.config.output_lengths(length) for length in lengths], "no frame is lost"
    for clip, values, length in zip(clips, out.values, out.lengths, strict=True):
        expected = naive(family, encoder, clip.values)
        assert len(expected) == length
        torch.testing.assert_close(values[:length], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", [*GROUP_NORMS, "hubert-large", "wavlm-large", "hf_audio-large"])
def test_chunks_equal_the_whole_where_context_is_limited(family):
    """Before attention a frame sees 8 frames to each side (the positions' kernel of 16), and overlaps cover them."""
    whole, cut = build(family, layer=0), build(family, layer=0, chunk_seconds=0.8, chunk_overlap_seconds=0.16)
    cut.load_state_dict(whole.state_dict())
    clips = media(*LENGTHS)
    expected, got = encode(whole, clips), encode(cut, clips)
    assert got.lengths.tolist() == expected.lengths.tolist()
    for one, other, length in zip(got.values, expected.values, got.lengths, strict=True):
        torch.testing.assert_close(one[:length], other[:length], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", GROUP_NORMS)
@pytest.mark.parametrize("conv_stride", [[5, 2, 2, 2, 2, 2, 2], [4, 3, 2, 2, 2, 2, 2]])
def test_a_norm_over_time_is_over_the_whole_clip(family, conv_stride, monkeypatch):
    """Away from a seam (of 8 frames to each side, the reach of the positions) nothing tells the window from the whole.

    The last clips end within the last hop of a window, on its end, and beyond it by less than gives a frame more.
    """
    kind, numbers = FAMILIES[family]
    monkeypatch.setitem(FAMILIES, family, (kind, {**numbers, "conv_stride": conv_stride}))
    whole, cut = build(family, layer=0, do_normalize=False), build(family, layer=0, do_normalize=False, **CHUNKS)
    cut.load_state_dict(whole.state_dict())
    hop, window = cut.config.hop, cut.config.chunker.window
    ends = [window + 3 * cut.config.chunker.step * hop + more for more in (-1, 0, 1, hop // 5, hop // 4, hop - 1)]
    clips = media(*LENGTHS, *ends)
    for clip in clips:  # loud at one end: each window's own statistics would be far from the clip's
        clip.values.mul_(torch.linspace(0.1, 3.0, len(clip.values)))
    expected, got = encode(whole, clips), encode(cut, clips)
    assert got.lengths.tolist() == expected.lengths.tolist()
    step, context = cut.config.chunker.step, cut.config.chunker.context
    for one, other, length in zip(got.values, expected.values, got.lengths.tolist(), strict=True):
        seams = [seam for seam in range(context + step, length, step) if length > cut.config.chunker.frames]
        near = {frame for seam in seams for frame in range(seam - 8, seam + 8)}
        away = [frame for frame in range(length) if frame not in near]
        torch.testing.assert_close(one[away], other[away], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_fits_into_a_window_is_not_cut(family):
    clips = media(3_000, 12_000)
    expected, got = encode(build(family), clips), encode(build(family, **CHUNKS), clips)
    assert torch.equal(got.values, expected.values)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_s_chunks_do_not_depend_on_its_batch(family):
    encoder = build(family, **CHUNKS)
    clips = media(*LENGTHS, 0, 100)
    out = encode(encoder, clips)
    for clip, values, length in zip(clips, out.values, out.lengths, strict=True):
        alone = encode(encoder, [clip])
        torch.testing.assert_close(values[:length], alone.values[0, :length], atol=1e-5, rtol=1e-5)
