"""The convolutional adapter against torch's convolution over one clip at a time, and its lengths against counting."""

from __future__ import annotations

import wave
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from speechlmm_adapters.conv.config import ConvAdapterConfig
from speechlmm_core.errors import ConfigError, MediaError
from speechlmm_core.features import Features
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.testing.composite import tiny_model_config
from speechlmm_core.testing.toy import ToyEncoderConfig

CONTEXT = BuildContext(input_size=6, output_size=5, frame_rate=Fraction(50))


def build(**options):
    torch.manual_seed(0)
    return ConvAdapterConfig(**options).build(CONTEXT).eval()


def features(*lengths: int) -> Features:
    generator = torch.Generator().manual_seed(sum(lengths))
    values = torch.randn(len(lengths), max(lengths, default=0), 6, generator=generator)
    return Features(values, torch.tensor(lengths, dtype=torch.long))


def count_windows(length: int, kernel: int, stride: int, *, same: bool) -> int:
    """Windows by counting: all that begin within the clip, or all that lie within it."""
    starts = range(0, length, stride)
    return len(starts) if same else sum(start + kernel <= length for start in starts)


def naive(adapter, frames: torch.Tensor) -> torch.Tensor:
    """One clip, window by window."""
    config, values = adapter.config, frames
    last = len(adapter.model) - 1
    for number, layer in enumerate(adapter.model):
        weight, bias = layer.conv.weight, layer.conv.bias
        kernel, stride = weight.shape[2], layer.conv.stride[0]
        residual = 0 < number <= config.num_residual_layers
        same = residual or config.padding == "same"
        before = (kernel - 1) // 2 if same else 0
        rows = []
        for start in range(0, len(values), stride) if same else range(0, len(values) - kernel + 1, stride):
            row = bias.clone()
            for offset in range(kernel):
                if 0 <= start + offset - before < len(values):
                    row = row + weight[:, :, offset] @ values[start + offset - before]
            row = torch.nn.functional.layer_norm(row, row.shape) if config.layer_norm else row
            rows.append(torch.nn.functional.gelu(row) if number < last else row)
        out = torch.stack(rows)
        values = values + out if residual else out
    return values


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_residual_layers": 2, "layer_norm": True, "hidden_size": 8},
        {"kernel_sizes": (4, 1, 2), "strides": (1, 3, 2), "num_residual_layers": 1},
        {"kernel_sizes": (5,), "strides": (4,), "num_residual_layers": 1},
    ],
    ids=["default", "residual", "three", "one"],
)
def test_equals_the_naive_loop(padding, options):
    adapter = build(padding=padding, **options)
    given = features(17, 30, 23)
    out = adapter(given)
    for row, length in enumerate(given.lengths):
        expected = naive(adapter, given.values[row, :length])
        assert out.lengths[row] == len(expected)
        torch.testing.assert_close(out.values[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)
        assert not out.values[row, len(expected) :].any()


def test_default_is_four_to_one():
    config = ConvAdapterConfig()
    assert config.output_frame_rate(Fraction(50)) == Fraction(25, 2)
    assert [config.output_lengths(length, Fraction(50)) for length in (0, 1, 4, 5, 1500)] == [0, 1, 1, 2, 375]
    convolutions = [layer.conv for layer in build().model]
    assert [(c.kernel_size, c.stride) for c in convolutions] == [((3,), (2,))] * 2


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 25), max_size=3),
    layers=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=3),
    padding=st.sampled_from(["same", "valid"]),
    residual=st.integers(0, 1),
)
def test_declared_lengths_are_the_real_ones(lengths, layers, padding, residual):
    kernels, strides = zip(*layers, strict=True)
    adapter = build(kernel_sizes=kernels, strides=strides, padding=padding, num_residual_layers=residual)
    out = adapter(features(*lengths))
    expected = lengths
    for kernel, stride in layers:
        expected = [count_windows(length, kernel, stride, same=padding == "same") for length in expected]
    assert out.lengths.tolist() == expected
    assert out.values.shape == (len(lengths), max(expected, default=0), 5)
    assert [adapter.config.output_lengths(length, Fraction(50)) for length in lengths] == expected


def test_a_stride_that_leaves_no_frame():
    adapter = build(padding="valid", kernel_sizes=(8,), strides=(8,))
    out = adapter(features(7, 3))
    assert out.lengths.tolist() == [0, 0]
    assert out.values.shape == (2, 0, 5)
    assert build(strides=(8, 8))(features(7, 3)).lengths.tolist() == [1, 1]


def test_a_clip_without_a_frame_is_refused_by_its_name(tmp_path):
    path = tmp_path / "short.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(b"\0\0" * 1600)
    conv = ConvAdapterConfig(padding="valid", kernel_sizes=(8,), strides=(8,))
    with tiny_model_config({"audio_encoder": ToyEncoderConfig(), "audio_adapter": conv}) as config:
        processor = SpeechLMMProcessor.from_config(config)
        message = {"role": "user", "content": [{"type": "audio", "path": str(path)}]}
        frames = ToyEncoderConfig().output_lengths(1600)
        with pytest.raises(
            MediaError, match=rf"short.wav.*audio_adapter \(conv\) makes no frame of its {frames} encoder"
        ):
            processor.sample([message], with_answer=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": [2, 2, 2]}, "`kernel_sizes` names 2 convolutions and `strides` 3"),
        ({"strides": [2, 0]}, "greater than or equal to 1"),
        ({"strides": [], "kernel_sizes": []}, "at least 1 item"),
        ({"residual_kernel_size": 4}, "`residual_kernel_size: 4` is even"),
    ],
)
def test_bad_numbers(options, message):
    with pytest.raises(ValidationError, match=message):
        ConvAdapterConfig(**options)


def test_unknown_activation():
    with pytest.raises(ConfigError, match="unknown activation 'gleu'"):
        build(activation="gleu")
