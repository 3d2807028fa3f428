"""The Q-Former against transformers' BLIP-2 one, run on every window by itself."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

import speechlmm_adapters.attention
from speechlmm_adapters.qformer.config import QFormerAdapterConfig
from speechlmm_core.errors import ConfigError
from speechlmm_core.features import Features
from speechlmm_core.interfaces.context import BuildContext

SMALL = {"hidden_size": 12, "num_layers": 3, "num_attention_heads": 3, "intermediate_size": 20}
CONTEXT = BuildContext(input_size=6, output_size=5, frame_rate=Fraction(50))


def build(ctx: BuildContext = CONTEXT, **options):
    torch.manual_seed(0)
    adapter = QFormerAdapterConfig(**SMALL | options).build(ctx).eval()
    for name, parameter in adapter.named_parameters():  # biases and norms that do something
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0, 0.1)
        else:
            nn.init.normal_(parameter, 0.0, 0.3)
    return adapter


def features(*lengths: int) -> Features:
    generator = torch.Generator().manual_seed(sum(lengths))
    values = torch.randn(len(lengths), max(lengths, default=0), 6, generator=generator)
    return Features(values, torch.tensor(lengths, dtype=torch.long))


def blip2(adapter) -> Blip2QFormerModel:
    """Transformers' Q-Former with the same weights."""
    config = adapter.config
    twin = Blip2QFormerModel(
        Blip2QFormerConfig(
            hidden_size=12,
            num_hidden_layers=3,
            num_attention_heads=3,
            intermediate_size=20,
            encoder_hidden_size=6,
            cross_attention_frequency=config.cross_attention_every,
            layer_norm_eps=config.layer_norm_eps,
        )
    ).eval()
    state = {"layernorm": adapter.model.query_norm}
    for number, layer in enumerate(adapter.model.layers):
        name = f"encoder.layer.{number}"
        for theirs, own, norm in (
            ("attention", layer.attention, layer.attention_norm),
            ("crossattention", layer.cross_attention, layer.cross_attention_norm),
        ):
            if own is not None:
                state |= {f"{name}.{theirs}.attention.{part}": getattr(own, part) for part in ("query", "key", "value")}
                state |= {f"{name}.{theirs}.output.dense": own.output, f"{name}.{theirs}.output.LayerNorm": norm}
        state |= {f"{name}.intermediate_query.dense": layer.feed_forward.up}
        state |= {f"{name}.output_query.dense": layer.feed_forward.down}
        state |= {f"{name}.output_query.LayerNorm": layer.feed_forward_norm}
    tensors = {f"{name}.{key}": value for name, part in state.items() for key, value in part.state_dict().items()}
    twin.load_state_dict(tensors, strict=True)
    return twin


def naive(adapter, frames: torch.Tensor, window: int | None, context: int) -> torch.Tensor:
    """One clip, window by window."""
    twin, rows = blip2(adapter), []
    window = window or len(frames)
    for start in range(0, len(frames), window):
        seen = frames[max(start - context, 0) : start + window + context]
        hidden = twin(query_embeds=adapter.model.queries[None], encoder_hidden_states=adapter.input_norm(seen)[None])
        rows.append(adapter.output(hidden.last_hidden_state[0]))
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("options", "window", "context"),
    [
        ({"window_frames": 4}, 4, 0),
        ({"window_frames": 4, "context_frames": 2, "num_queries": 3, "cross_attention_every": 2}, 4, 2),
        ({"window_frames": 3, "context_frames": 5}, 3, 5),
        ({"window_seconds": 0.1, "context_fraction": 0.25}, 5, 1),
        ({"window_seconds": 0.12, "context_seconds": 0.04, "num_queries": 2}, 6, 2),
        ({"window_seconds": 60, "num_queries": 2}, 3000, 0),
        ({"window_frames": 13, "context_frames": 2}, 13, 2),
        ({"window_seconds": None, "num_queries": 4}, None, 0),
    ],
    ids=str,
)
def test_equals_transformers_on_every_window(options, window, context):
    adapter = build(**options)
    given = features(13, 4, 9, 1)
    out = adapter(given)
    for row, length in enumerate(given.lengths.tolist()):
        with torch.no_grad():
            expected = naive(adapter, given.values[row, :length], window, context)
        assert out.lengths[row] == len(expected)
        torch.testing.assert_close(out.values[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)
        assert not out.values[row, len(expected) :].any()


def test_many_windows_are_run_in_parts(monkeypatch):
    adapter = build(window_frames=2, context_frames=1)
    given = features(13, 4, 9)
    expected = adapter(given).values
    monkeypatch.setattr(speechlmm_adapters.attention, "MAX_BATCH", 4)
    torch.testing.assert_close(adapter(given).values, expected, atol=1e-6, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), max_size=4),
    window=st.integers(1, 25),
    context=st.integers(0, 4),
    queries=st.integers(1, 3),
)
def test_declared_lengths_are_the_real_ones(lengths, window, context, queries):
    adapter = build(window_frames=window, context_frames=context, num_queries=queries)
    out = adapter(features(*lengths))
    expected = [queries * len(range(0, length, window)) for length in lengths]
    assert out.lengths.tolist() == expected
    assert out.values.shape == (len(lengths), max(expected, default=0), 5)
    assert [adapter.config.output_lengths(length, Fraction(50)) for length in lengths] == expected
    assert adapter.config.output_frame_rate(Fraction(50)) == Fraction(50 * queries, window)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), max_size=3), queries=st.integers(1, 3))
def test_whole_utterances_give_as_many_frames_as_there_are_queries(lengths, queries):
    adapter = build(window_seconds=None, num_queries=queries)
    expected = [queries if length else 0 for length in lengths]
    assert adapter(features(*lengths)).lengths.tolist() == expected
    assert [adapter.config.output_lengths(length, Fraction(50)) for length in lengths] == expected


@pytest.mark.parametrize(
    ("seconds", "rate", "window"),
    [
        (0.333, Fraction(50), 17),
        (0.333, Fraction(25), 8),
        (0.333, Fraction(25, 4), 2),
        (0.05, Fraction(50), 3),  # 2.5 frames
        (0.001, Fraction(50), 1),
        (0.07, Fraction(30_000, 1001), 2),
        (0.29, Fraction(50), 15),  # 14.5 frames, which 0.29 as a binary number is not
    ],
)
def test_seconds_are_rounded_exactly(seconds, rate, window):
    config = QFormerAdapterConfig(window_seconds=seconds)
    assert config.window(rate) == window
    assert config.output_lengths(window * 3 + 1, rate) == 4
    assert config.output_frame_rate(rate) == rate / window


def test_frames_replace_seconds_and_survive_a_dump():
    config = QFormerAdapterConfig(window_frames=4)
    assert config.window_seconds is None
    assert QFormerAdapterConfig.model_validate(config.model_dump(mode="json")) == config
    assert not config.whole_utterance
    assert QFormerAdapterConfig(window_seconds=None).whole_utterance
    assert QFormerAdapterConfig().window(Fraction(50)) == 17


@pytest.mark.parametrize("width", [8, 2048, 4096])
def test_reaches_the_width_of_any_language_model(width):
    ctx = BuildContext(input_size=6, output_size=width, frame_rate=Fraction(50))
    assert build(ctx)(features(2)).values.shape == (1, 1, width)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_seconds": 1.0, "window_frames": 3}, "got `window_seconds: 1.0` and `window_frames: 3`"),
        ({"context_frames": 1, "context_fraction": 0.1}, "got `context_frames` and `context_fraction`"),
        ({"window_seconds": None, "context_frames": 1}, "`context_frames` needs windows"),
        ({"num_attention_heads": 7}, "`num_attention_heads: 7` does not divide `hidden_size: 768`"),
        ({"window_frames": 0}, "greater than or equal to 1"),
        ({"num_queries": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_numbers(options, message):
    with pytest.raises(ValidationError, match=message):
        QFormerAdapterConfig(**options)


def test_seconds_need_a_frame_rate():
    nowhere = BuildContext(input_size=6, output_size=5)
    with pytest.raises(ConfigError, match=r"`window_seconds: 0.333` needs frames that come at a rate"):
        build(nowhere)
    with pytest.raises(ConfigError, match="use `context_frames`"):
        build(nowhere, window_frames=3, context_seconds=0.1)
    assert build(nowhere, window_frames=3).window == 3
