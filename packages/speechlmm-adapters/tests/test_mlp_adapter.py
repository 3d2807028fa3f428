"""The MLP and identity adapters against hand-written arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlmm_adapters.identity.config import IdentityAdapterConfig
from speechlmm_adapters.mlp.config import MLPAdapterConfig
from speechlmm_core.errors import ConfigError
from speechlmm_core.features import Features
from speechlmm_core.interfaces.context import BuildContext

CONTEXT = BuildContext(input_size=6, output_size=5, frame_rate=Fraction(50))


def build(**options):
    torch.manual_seed(0)
    return MLPAdapterConfig(hidden_size=7, **options).build(CONTEXT).eval()


def features(*lengths: int) -> Features:
    generator = torch.Generator().manual_seed(sum(lengths))
    values = torch.randn(len(lengths), max(lengths, default=0), 6, generator=generator)
    return Features(values, torch.tensor(lengths, dtype=torch.long))


def naive(adapter, frames: torch.Tensor) -> torch.Tensor:
    """One clip, frame by frame."""
    config, rows = adapter.config, []
    for start in range(0, len(frames), config.stack):
        group = [frames[i] if i < len(frames) else torch.zeros(6) for i in range(start, start + config.stack)]
        stacked = torch.cat(group)
        hidden = stacked
        if config.layer_norm:
            hidden = torch.nn.functional.layer_norm(hidden, hidden.shape)
        linear = [layer for layer in adapter.model if isinstance(layer, torch.nn.Linear)]
        assert len(linear) == config.num_layers
        for number, layer in enumerate(linear):
            if number and config.hidden_layer_norm:
                hidden = torch.nn.functional.layer_norm(hidden, hidden.shape)
            activation = getattr(torch.nn.functional, config.activation)
            hidden = layer.weight @ (activation(hidden) if number else hidden) + layer.bias
        if config.output_layer_norm:
            hidden = torch.nn.functional.layer_norm(hidden, hidden.shape)
        if config.residual == "linear":
            hidden = hidden + adapter.residual.weight @ stacked
        if config.residual == "interpolation":
            hidden = hidden + interpolated(stacked, len(hidden))
        rows.append(hidden)
    return torch.stack(rows)


def interpolated(vector: torch.Tensor, width: int) -> torch.Tensor:
    """The vector read at evenly spaced places between the middles of its elements."""
    values, found = vector.tolist(), []
    for place in range(width):
        at = min(max((place + 0.5) * len(values) / width - 0.5, 0), len(values) - 1)
        left = int(at)
        right = min(left + 1, len(values) - 1)
        found.append(values[left] * (1 - (at - left)) + values[right] * (at - left))
    return torch.tensor(found)


@pytest.mark.parametrize("stack", [1, 2, 5])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("residual", ["none", "linear"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_equals_the_naive_loop(stack, num_layers, residual, layer_norm):
    adapter = build(stack=stack, num_layers=num_layers, residual=residual, layer_norm=layer_norm)
    given = features(7, 1, 10)
    out = adapter(given)
    for row, length in enumerate(given.lengths):
        expected = naive(adapter, given.values[row, :length])
        assert out.lengths[row] == len(expected)
        torch.testing.assert_close(out.values[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)
        assert not out.values[row, len(expected) :].any()


@pytest.mark.parametrize("width", [3, 5, 12, 40])
def test_residual_by_interpolation(width):
    torch.manual_seed(0)
    config = MLPAdapterConfig(
        hidden_size=7,
        num_layers=4,
        activation="relu",
        residual="interpolation",
        stack=2,
        hidden_layer_norm=True,
        output_layer_norm=True,
    )
    adapter = config.build(BuildContext(input_size=6, output_size=width, frame_rate=Fraction(50))).eval()
    given = features(7, 1)
    out = adapter(given)
    for row, length in enumerate(given.lengths):
        expected = naive(adapter, given.values[row, :length])
        torch.testing.assert_close(out.values[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)
    assert adapter(features(0, 0)).values.shape == (2, 0, width)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 20), max_size=4), stack=st.integers(1, 6))
def test_declared_lengths_are_the_real_ones(lengths, stack):
    adapter = build(stack=stack)
    out = adapter(features(*lengths))
    declared = [adapter.config.output_lengths(length, Fraction(50)) for length in lengths]
    assert out.lengths.tolist() == declared == [(length + stack - 1) // stack for length in lengths]
    assert out.values.shape == (len(lengths), max(declared, default=0), 5)
    assert adapter.config.output_frame_rate(Fraction(50)) == Fraction(50, stack)


@pytest.mark.parametrize("adapter", [build(stack=3, residual="linear"), IdentityAdapterConfig().build(CONTEXT)])
def test_what_stands_in_the_padding_has_no_influence(adapter):
    given = features(4, 8, 0)
    spoilt = given.values.masked_fill(~given.mask()[:, :, None], torch.nan)
    wider = torch.nn.functional.pad(spoilt, (0, 0, 0, 2), value=torch.nan)
    clean, dirty = adapter(given), adapter(Features(wider, given.lengths))
    length = clean.values.shape[1]
    torch.testing.assert_close(dirty.values[:, :length], clean.values, rtol=0, atol=1e-6)
    assert not dirty.values[:, length:].any()


def test_identity_passes_frames_through():
    config = IdentityAdapterConfig()
    given = features(3, 5)
    out = config.build(CONTEXT)(given)
    assert torch.equal(out.values[1], given.values[1])
    assert out.lengths.tolist() == [3, 5]
    assert config.output_size(CONTEXT) == 6
    assert (config.output_lengths(9, Fraction(50)), config.output_frame_rate(Fraction(50))) == (9, 50)


def test_gradients_bf16_and_dropout():
    adapter = build(stack=2, num_layers=3, residual="linear", dropout=0.5)
    given = features(5, 3)
    given.values.requires_grad_()
    adapter(given).values.sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    assert given.values.grad is not None
    assert not given.values.grad[1, 3:].any()
    assert torch.equal(adapter(given).values, adapter(given).values)
    adapter.train()
    assert not torch.equal(adapter(given).values, adapter(given).values)
    half = adapter.eval().bfloat16()(Features(given.values.bfloat16(), given.lengths)).values
    assert half.dtype == torch.bfloat16


def test_unknown_activation():
    with pytest.raises(ConfigError, match="unknown activation 'gleu'"):
        build(activation="gleu")
