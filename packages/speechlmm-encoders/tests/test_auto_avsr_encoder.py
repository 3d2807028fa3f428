"""AutoAVSR's encoder against a network written out per clip, frame by frame and score by score.

Shapes: T frames, C channels, D hidden, H heads.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.media.medium import Medium
from speechlmm_encoders.auto_avsr import conformer, frontend
from speechlmm_encoders.auto_avsr.config import AutoAvsrEncoderConfig

TINY = {
    "frontend_hidden_sizes": [3, 4, 5, 6],
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "conv_depthwise_kernel_size": 5,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}


def build(attention="auto", **fields):
    """An encoder in which every parameter and every statistic is random."""
    config = AutoAvsrEncoderConfig.model_validate({"model": TINY, **fields})
    encoder = config.build(BuildContext(attn_implementation=attention))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in encoder.model.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(noise / math.sqrt(max(tensor[0].numel(), 4)) if tensor.dim() > 1 else 0.5 + noise * 0.3)
    return encoder.eval()


def clip(num_frames, seed=0, size=88):
    generator = torch.Generator().manual_seed(100 * num_frames + seed)
    return Medium(torch.randint(0, 256, (num_frames, size, size), generator=generator, dtype=torch.uint8), 25)


def run(encoder, clips):
    with torch.no_grad():
        return encoder(encoder.config.build_preprocessor()(clips))


class Reference:
    """One clip at a time, in float64, straight from the tensors of the published layout."""

    def __init__(self, encoder):
        self.tensors = {f"encoder.{name}": value.double() for name, value in encoder.model.state_dict().items()}
        self.layers, self.heads = TINY["num_hidden_layers"], TINY["num_attention_heads"]

    def get(self, name):
        return self.tensors[f"encoder.{name}"]

    def norm(self, values, name):
        """A batch norm with the stored statistics; channels are the second dimension."""
        shape = (1, -1, *[1] * (values.dim() - 2))
        mean, var, weight, bias = (
            self.get(f"{name}.{part}").view(shape) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (values - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def layer_norm(self, values, name):
        mean, var = values.mean(-1, keepdim=True), values.var(-1, correction=0, keepdim=True)
        return (values - mean) / torch.sqrt(var + 1e-12) * self.get(f"{name}.weight") + self.get(f"{name}.bias")

    def linear(self, values, name):
        out = values @ self.get(f"{name}.weight").T
        return out + self.get(f"{name}.bias") if f"encoder.{name}.bias" in self.tensors else out

    def block(self, values, name, stride):
        out = functional.conv2d(values, self.get(f"{name}.conv1.weight"), stride=stride, padding=1)
        out = self.norm(out, f"{name}.bn1")
        out = out * out.sigmoid()
        out = self.norm(functional.conv2d(out, self.get(f"{name}.conv2.weight"), padding=1), f"{name}.bn2")
        if f"encoder.{name}.downsample.0.weight" in self.tensors:
            values = functional.conv2d(values, self.get(f"{name}.downsample.0.weight"), stride=stride)
            values = self.norm(values, f"{name}.downsample.1")
        out = out + values
        return out * out.sigmoid()

    def stem(self, frames):
        """(T, H, W) bytes -> (T, C, H', W')."""
        pixels = (frames.double() / 255 - 0.421) / 0.165
        weight = self.get("frontend.frontend3D.0.weight")
        return functional.conv3d(pixels[None, None], weight, stride=(1, 2, 2), padding=(2, 3, 3))

    def frontend(self, frames):
        out = self.norm(self.stem(frames), "frontend.frontend3D.1")
        out = functional.max_pool3d(out * out.sigmoid(), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        out = out[0].transpose(0, 1)  # (T, C, H, W)
        for stage in (1, 2, 3, 4):
            out = self.block(out, f"frontend.trunk.layer{stage}.0", 1 if stage == 1 else 2)
            out = self.block(out, f"frontend.trunk.layer{stage}.1", 1)
        return out.mean((2, 3))  # (T, C)

    def attention(self, values, name):
        length, width = values.shape
        size = width // self.heads
        query, key, value = (self.linear(values, f"{name}.linear_{part}") for part in "qkv")
        out = torch.zeros_like(values)
        for head in range(self.heads):
            own = slice(head * size, (head + 1) * size)
            u, v = self.get(f"{name}.pos_bias_u")[head], self.get(f"{name}.pos_bias_v")[head]
            for i in range(length):
                scores = []
                for j in range(length):
                    angles = [(i - j) / 10_000 ** (2 * k / width) for k in range(width // 2)]
                    place = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
                    place = (self.get(f"{name}.linear_pos.weight") @ torch.tensor(place).double())[own]
                    scores.append((query[i, own] + u) @ key[j, own] + (query[i, own] + v) @ place)
                shares = (torch.stack(scores) / math.sqrt(size)).softmax(0)
                out[i, own] = sum(shares[j] * value[j, own] for j in range(length))
        return self.linear(out, f"{name}.linear_out")

    def convolution(self, values, name):
        length, width = values.shape
        gated = values @ self.get(f"{name}.pointwise_cov1.weight")[:, :, 0].T + self.get(f"{name}.pointwise_cov1.bias")
        gated = gated[:, :width] * gated[:, width:].sigmoid()
        kernel = self.get(f"{name}.depthwise_conv.weight")[:, 0]  # (D, K)
        out = self.get(f"{name}.depthwise_conv.bias").repeat(length, 1)
        for t in range(length):
            for k in range(kernel.shape[1]):
                if 0 <= (at := t + k - kernel.shape[1] // 2) < length:
                    out[t] = out[t] + kernel[:, k] * gated[at]
        out = self.norm(out, f"{name}.norm")
        out = out * out.sigmoid()
        return out @ self.get(f"{name}.pointwise_cov2.weight")[:, :, 0].T + self.get(f"{name}.pointwise_cov2.bias")

    def feed_forward(self, values, name):
        return self.linear(self.linear(values, f"{name}.w_1").clamp(min=0), f"{name}.w_2")

    def states(self, frames):
        """The embedding, the output of each layer, the last of them normalised."""
        values = self.linear(self.frontend(frames), "embed.0") * math.sqrt(TINY["hidden_size"])
        states = [values]
        for number in range(self.layers):
            at = f"encoders.{number}"
            inner = self.layer_norm(values, f"{at}.norm_ff_macaron")
            values = values + self.feed_forward(inner, f"{at}.feed_forward_macaron") / 2
            values = values + self.attention(self.layer_norm(values, f"{at}.norm_mha"), f"{at}.self_attn")
            values = values + self.convolution(self.layer_norm(values, f"{at}.norm_conv"), f"{at}.conv_module")
            values = values + self.feed_forward(self.layer_norm(values, f"{at}.norm_ff"), f"{at}.feed_forward") / 2
            values = self.layer_norm(values, f"{at}.norm_final")
            states.append(values)
        states[-1] = self.layer_norm(states[-1], "after_norm")
        return states


LENGTHS = (7, 1, 11, 2)


@pytest.fixture(scope="module")
def expected():
    reference = Reference(build())
    return [[state.float() for state in reference.states(clip(length).values)] for length in LENGTHS]


def check(features, expected):
    assert features.lengths.tolist() == list(LENGTHS)
    for row, length, wanted in zip(features.values, LENGTHS, expected, strict=True):
        assert torch.allclose(row[:length], wanted, atol=1e-5, rtol=1e-5), (row[:length] - wanted).abs().max()
        assert not row[length:].any()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_equals_the_reference(expected, attention, layer):
    check(run(build(attention, layer=layer), [clip(n) for n in LENGTHS]), [states[layer] for states in expected])


def test_weighted_sum_of_layers(expected):
    encoder = build(layer="weighted")
    with torch.no_grad():
        encoder.layer_mix.weights.copy_(torch.tensor([0.3, -0.2, 0.7]))
    shares = torch.tensor([0.3, -0.2, 0.7]).softmax(0)
    sums = [sum(share * state for share, state in zip(shares, states, strict=True)) for states in expected]
    check(run(encoder, [clip(n) for n in LENGTHS]), sums)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("scores", [1, 3 * 2 * 11 * 4, 3 * 2 * 11 * 11 * 2])
def test_scores_in_pieces(expected, monkeypatch, scores, attention):
    """Few rows, or few queries of one row, at a time."""
    monkeypatch.setattr(conformer, "MAX_SCORES", scores)
    check(run(build(attention), [clip(n) for n in LENGTHS]), [states[-1] for states in expected])


@pytest.mark.parametrize(("frames", "values"), [(1, 1), (4, 30_000), (512, 30_000)])
def test_frames_in_groups(expected, monkeypatch, frames, values):
    monkeypatch.setattr(frontend, "MAX_FRAMES", frames)
    monkeypatch.setattr(frontend, "CACHED_VALUES", values)
    check(run(build(), [clip(n) for n in LENGTHS]), [states[-1] for states in expected])


def test_gradients_equal_the_reference():
    """Of every parameter, through attention with a bias that itself has a gradient."""
    encoder = build()
    output = encoder(encoder.config.build_preprocessor()([clip(3), clip(5)]))
    direction = torch.randn(output.values.shape, generator=torch.Generator().manual_seed(1))
    (output.values * direction).sum().backward()
    reference = Reference(encoder)
    for tensor in reference.tensors.values():
        tensor.requires_grad_()
    total = sum(
        (reference.states(clip(length).values)[-1] * direction[row, :length]).sum() for row, length in enumerate((3, 5))
    )
    total.backward()
    for name, parameter in encoder.model.named_parameters():
        wanted = reference.get(name).grad.float()
        assert torch.allclose(parameter.grad, wanted, atol=1e-4 * wanted.abs().max().clamp(min=1)), name


def test_statistics_of_a_batch_norm_are_those_of_valid_frames(expected):
    """In training mode; neither padding nor the frames between clips take part."""
    encoder = build().train()
    reference = Reference(encoder)
    seen = {}
    for number, layer in enumerate(encoder.model.encoders):
        layer.conv_module.norm.register_forward_hook(lambda _, args, out, n=number: seen.update({n: args[0].shape[0]}))
    norm = encoder.model.frontend.frontend3D[1]
    before = norm.running_mean.clone()
    run(encoder, [clip(n) for n in LENGTHS])
    frames = torch.cat([reference.stem(clip(length).values)[0].flatten(1) for length in LENGTHS], dim=1)  # (C, ...)
    assert torch.allclose(norm.running_mean, 0.9 * before + 0.1 * frames.mean(1).float(), atol=1e-5)
    assert seen == {0: sum(LENGTHS), 1: sum(LENGTHS)}


def test_dropout_is_for_training_only():
    encoder = build(model={**TINY, "hidden_dropout": 0.5, "attention_dropout": 0.5})
    inputs = encoder.config.build_preprocessor()([clip(4), clip(7)])
    assert torch.equal(encoder(inputs).values, encoder(inputs).values)
    assert torch.equal(encoder(inputs).values, build()(inputs).values)
    encoder.train()
    output = encoder(inputs).values
    assert not torch.allclose(output, encoder(inputs).values)
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.model.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_training_under_autocast_beside_an_empty_clip(attention):
    encoder = build(attention).train()
    inputs = encoder.config.build_preprocessor()([clip(0), clip(7), clip(2)])
    with torch.autocast("cpu", torch.bfloat16):
        output = encoder(inputs).values
    assert not output[0].any()
    output.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.model.parameters())


def test_one_frame_alone_trains():
    encoder = build().train()
    output = encoder(encoder.config.build_preprocessor()([clip(1)]))
    output.values.sum().backward()
    assert output.values.isfinite().all()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_batches_equal_clips_alone(lengths):
    encoder = build()
    clips = [clip(length, seed) for seed, length in enumerate(lengths)]
    together = run(encoder, clips)
    assert together.lengths.tolist() == lengths
    for row, one in zip(together.values, clips, strict=True):
        alone = run(encoder, [one]).values[0]
        assert torch.allclose(row[: len(alone)], alone, atol=1e-5)
        assert not row[len(alone) :].any()


def test_padding_is_never_read():
    """Bytes in the padding, and a batch that is padded further."""
    encoder = build()
    inputs = encoder.config.build_preprocessor()([clip(4), clip(7)])
    expected = encoder(inputs).values
    inputs["pixel_values_videos"][0, 4:] = 255
    assert torch.equal(encoder(inputs).values, expected)


def test_gradients_reach_pixels_and_not_padding():
    encoder = build()
    inputs = encoder.config.build_preprocessor()([clip(4), clip(7)])
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].float().requires_grad_()
    encoder(inputs).values.square().sum().backward()
    gradient = inputs["pixel_values_videos"].grad
    assert gradient[0, :4].abs().amax((1, 2)).gt(0).all()
    assert gradient[1].abs().amax((1, 2)).gt(0).all()
    assert not gradient[0, 4:].any()


def test_nothing_is_read_from_the_device():
    encoder = build()
    inputs = encoder.config.build_preprocessor()([clip(4), clip(7)])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {name: mode.from_tensor(tensor) for name, tensor in inputs.items()}
        assert encoder(fake).values.shape == (2, 7, 12)


def test_chunks_are_windows_encoded_alone():
    """0.4 s with 0.08 s of context on either side: 10 frames, of which the inner 6 are kept."""
    chunked, whole = build(chunk_seconds=0.4, chunk_overlap_seconds=0.08), build()
    medium = clip(19)
    features = run(chunked, [clip(3), medium])
    assert features.lengths.tolist() == [3, 19]
    starts, kept = (0, 6, 12), (slice(0, 8), slice(2, 8), slice(2, 7))
    parts = [run(whole, [Medium(medium.values[start : start + 10], 25)]).values[0] for start in starts]
    wanted = torch.cat([part[keep] for part, keep in zip(parts, kept, strict=True)])
    assert torch.allclose(features.values[1], wanted, atol=1e-5)
    assert torch.allclose(features.values[0, :3], run(whole, [clip(3)]).values[0], atol=1e-5)


def test_preprocessing():
    config = AutoAvsrEncoderConfig(model=TINY)
    large, small = clip(2, size=96), clip(3)
    inputs = config.build_preprocessor()([large, small])
    assert inputs["pixel_values_videos"].dtype == torch.uint8
    assert torch.equal(inputs["pixel_values_videos"][0, :2], large.values[:, 4:92, 4:92])
    assert torch.equal(inputs["pixel_values_videos"][1], small.values)
    assert not inputs["pixel_values_videos"][0, 2].any()
    assert inputs["frame_index"].tolist() == [0, 1, 3, 4, 5]
    bright = Medium(torch.tensor([-3.0, 0.4, 0.6, 300.0])[:, None, None].expand(4, 88, 88), 25)
    assert config.build_preprocessor()([bright])["pixel_values_videos"][0, :, 0, 0].tolist() == [0, 0, 1, 255]


def test_loading_takes_the_middle_of_mouth_crops():
    """Crops of 96 x 96 at 50 frames per second, as arrays."""
    config = AutoAvsrEncoderConfig(model=TINY)
    frames = clip(10, size=96).values
    item = {"type": "video", "array": frames.numpy(), "sampling_rate": 50}
    medium = config.load(item)
    assert medium.num_samples == config.num_samples(item) == 5
    assert (medium.sampling_rate, medium.values.dtype) == (25, torch.uint8)
    middle = frames[:, 4:92, 4:92]
    assert all((middle == frame).flatten(1).all(1).any() for frame in medium.values)


@pytest.mark.parametrize(
    ("medium", "message"),
    [
        (Medium(torch.zeros(4, 88, 88, dtype=torch.uint8), 30), "got video at 30 frames per second, expected 25"),
        (Medium(torch.zeros(4, 88, 80, dtype=torch.uint8), 25), r"shape \(4, 88, 80\), expected grey frames"),
        (Medium(torch.zeros(4, 88, 88, 3, dtype=torch.uint8), 25), r"shape \(4, 88, 88, 3\), expected grey frames"),
        (Medium(torch.zeros(16_000), 25), r"shape \(16000,\), expected grey frames"),
    ],
)
def test_media_of_another_form(medium, message):
    with pytest.raises(DataError, match=message):
        AutoAvsrEncoderConfig(model=TINY).build_preprocessor()([medium])


def test_lengths_and_rates():
    config = encoders.validate({"type": "auto_avsr"})
    assert [config.output_lengths(n) for n in (0, 1, 25, 1500)] == [0, 1, 25, 1500]
    assert (config.sampling_rate, config.frame_rate, config.hidden_size, config.modality) == (25, 25, 768, "video")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_attention_heads", 5, "multiple of num_attention_heads, got 12 and 5"),
        ("conv_depthwise_kernel_size", 4, "must be odd, got 4"),
    ],
)
def test_architectures_that_cannot_be(field, value, message):
    with pytest.raises(ValueError, match=message):
        AutoAvsrEncoderConfig.model_validate({"model": {**TINY, field: value}})


@pytest.mark.parametrize(
    ("requested", "used"), [("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager"), ("flash_attention_2", "sdpa")]
)
def test_the_attention_that_a_plan_shows(requested, used):
    assert build(requested).model.config._attn_implementation == used
