"""Widths, vocabulary, rates and codebooks are handed to every component, for every text decoder."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import pytest
import torch

from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.adapter import AdapterConfig, adapters
from speechlmm_core.interfaces.codec import CodecConfig, codecs
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.interfaces.talking_head import TalkingHeadConfig, talking_heads
from speechlmm_core.model.describe import meta_model
from speechlmm_core.testing.composite import stand_in
from speechlmm_core.testing.toy import ToyAdapterConfig, ToyEncoderConfig
from speechlmm_core.wiring import refuse_speech_output, wire


class ToyCodecConfig(CodecConfig):
    type: Literal["test.codec"] = "test.codec"
    books: int = 8

    @property
    def sampling_rate(self):
        return 24_000

    @property
    def frame_rate(self):
        return Fraction(25, 2)

    @property
    def num_codebooks(self):
        return self.books

    @property
    def codebook_size(self):
        return 256 * self.books

    def output_lengths(self, num_samples):
        return num_samples // 1920

    def build(self, ctx):
        raise AssertionError("never built here")


class ToyHeadConfig(TalkingHeadConfig):
    type: Literal["test.head"] = "test.head"

    def build(self, ctx):
        raise AssertionError("never built here")


class Narrow(AdapterConfig):
    """Gives frames of 7 values, whatever is asked for."""

    type: Literal["test.narrow"] = "test.narrow"

    def output_lengths(self, num_frames, frame_rate):
        return num_frames

    def output_frame_rate(self, frame_rate):
        return frame_rate

    def output_size(self, ctx):
        return 7

    def build(self, ctx):
        raise AssertionError("never built here")


@pytest.fixture(autouse=True)
def _registered():
    with (
        stand_in(encoders, ToyEncoderConfig),
        stand_in(adapters, ToyAdapterConfig),
        stand_in(adapters, Narrow),
        stand_in(codecs, ToyCodecConfig),
        stand_in(talking_heads, ToyHeadConfig),
    ):
        yield


# Hidden size, heads and vocabulary in the proportions of models of 1, 3, 8 and 70 billion parameters.
DECODERS = [(64, 4, 300), (96, 6, 301), (128, 8, 400), (256, 16, 512)]
ADAPTER = {"type": "speechlmm.toy_adapter"}


def config(width, heads, vocab, *, encoder_width=48, **parts):
    model = {
        "model_type": "llama",
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 1,
        "vocab_size": vocab,
    }
    return ModelConfig.model_validate(
        {
            "audio_encoder": {"type": "speechlmm.toy_encoder", "width": encoder_width},
            "audio_adapter": ADAPTER,
            "text_decoder": {"type": "causal_lm", "model": model, "tokenizer": "bytes"},
            **parts,
        }
    )


SPEECH_OUTPUT = {
    "codec": {"type": "test.codec"},
    "talking_head": {"type": "test.head"},
    "backfeeding_adapter": ADAPTER,
    "conditioning_adapter": ADAPTER,
}


@pytest.mark.parametrize(("width", "heads", "vocab"), DECODERS)
@pytest.mark.parametrize("books", [1, 8, 32])
def test_every_part_is_told_the_text_decoders_and_the_codecs_numbers(width, heads, vocab, books):
    parts = {**SPEECH_OUTPUT, "codec": {"type": "test.codec", "books": books}}
    contexts = wire(config(width, heads, vocab, **parts)).contexts
    for part in SPEECH_OUTPUT:
        ctx = contexts[part]
        assert ctx.component == part
        assert (ctx.output_size, ctx.vocab_size, ctx.frame_rate) == (width, vocab, Fraction(25, 2)), part
        assert (ctx.num_codebooks, ctx.codebook_size) == (books, 256 * books), part
    assert contexts["talking_head"].input_size == width
    assert contexts["backfeeding_adapter"].input_size == 0
    audio = contexts["audio_adapter"]
    assert (audio.input_size, audio.output_size, audio.vocab_size, audio.frame_rate) == (48, width, vocab, 50)
    assert (audio.num_codebooks, audio.codebook_size) == (0, 0)


@pytest.mark.parametrize(("width", "heads", "vocab"), DECODERS)
@pytest.mark.parametrize("encoder_width", [16, 40])
def test_adapters_reach_every_text_decoder(width, heads, vocab, encoder_width):
    model = meta_model(config(width, heads, vocab, encoder_width=encoder_width))
    assert model.get_submodule("audio_adapter.model").weight.shape == (width, encoder_width)


@pytest.mark.parametrize("part", ["audio_adapter", "backfeeding_adapter", "conditioning_adapter"])
def test_an_adapter_of_another_width_is_told(part):
    parts = {**SPEECH_OUTPUT, part: {"type": "test.narrow"}}
    with pytest.raises(ConfigError, match=rf"model\.{part} \(test\.narrow\) gives frames of width 7, but model\.text_"):
        wire(config(*DECODERS[0], **parts))


@pytest.mark.parametrize("method", ["output_lengths", "output_frame_rate"])
def test_an_adapter_that_needs_a_rate_is_told(method, monkeypatch):
    def refuse(*_):
        raise ConfigError("`seconds: 1` needs frames that come at a rate")

    monkeypatch.setattr(ToyAdapterConfig, method, refuse)
    with pytest.raises(
        ConfigError, match=r"model\.audio_adapter \(speechlmm\.toy_adapter\): `seconds: 1` needs frames"
    ):
        wire(config(*DECODERS[0]))


@pytest.mark.parametrize("part", ["talking_head", "backfeeding_adapter", "conditioning_adapter"])
def test_speech_output_without_a_codec_is_told(part):
    with pytest.raises(ConfigError, match=rf"model\.{part} needs to know its codebooks; name the codec"):
        wire(config(*DECODERS[0], **{part: SPEECH_OUTPUT[part]}))


@pytest.mark.parametrize("part", SPEECH_OUTPUT)
def test_parts_of_speech_output_are_refused_by_the_model_and_not_ignored(part):
    parts = {"codec": SPEECH_OUTPUT["codec"], part: SPEECH_OUTPUT[part]}
    told = f"model.{next(iter(parts))} is not built yet.*leave it out"
    with pytest.raises(ConfigError, match=told):
        refuse_speech_output(config(*DECODERS[0], **parts))
    with pytest.raises(ConfigError, match=told), torch.device("meta"):
        meta_model(config(*DECODERS[0], **parts))


def test_attention_of_a_part_of_speech_output():
    asked = {"talking_head": "eager"}
    contexts = wire(config(*DECODERS[0], **SPEECH_OUTPUT, attn_implementation=asked)).contexts
    assert contexts["talking_head"].attn_implementation == "eager"
    assert contexts["codec"].attn_implementation == "auto"
