"""What acts at training only: layers left out and spans masked, with every parameter in the graph of every rank."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.media.medium import Medium
from speechlmm_encoders.spec_augment import draw_spans, mask_spans
from speechlmm_encoders.transformer import LayerMix, leave_out, run_layers

RAW = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "conv_dim": [16] * 7}
RAW |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
RAW |= {"mask_time_prob": 0.5, "mask_time_length": 4, "mask_feature_prob": 0.2, "mask_feature_length": 4}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BERT |= {"feature_projection_input_dim": 16, "conv_depthwise_kernel_size": 5, "output_hidden_size": 32}
BERT |= {"mask_time_prob": 0.5, "mask_time_length": 4, "mask_feature_prob": 0.2, "mask_feature_length": 4}
WHISPER = {"num_mel_bins": 16, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
WHISPER |= {"max_source_positions": 50}
SEAMLESS = {"hidden_size": 32, "feature_projection_input_dim": 16, "speech_encoder_layers": 2}
SEAMLESS |= {"speech_encoder_attention_heads": 2, "speech_encoder_intermediate_size": 64}
MASKED = {"hubert": RAW, "wavlm": RAW, "w2v_bert_2": BERT}
DROPPED = {
    **{name: {**numbers, "layerdrop": 1.0} for name, numbers in MASKED.items()},
    "whisper": {**WHISPER, "encoder_layerdrop": 1.0},
    "whisper_unrestricted": {**WHISPER, "encoder_layerdrop": 1.0},
    "seamless": {**SEAMLESS, "speech_encoder_layerdrop": 1.0},
}


def build(kind, numbers, **options):
    torch.manual_seed(0)
    return encoders.validate({"type": kind, "model": numbers, **options}).build(BuildContext()).train()


def media(*lengths: int) -> list[Medium]:
    generator = torch.Generator().manual_seed(0)
    return [Medium(torch.randn(length, generator=generator) * 0.1, 16_000) for length in lengths]


@pytest.mark.parametrize("kind", DROPPED)
def test_layers_that_are_left_out_keep_their_place_in_the_graph(kind):
    encoder = build(kind, DROPPED[kind])
    values = encoder(encoder.config.build_preprocessor()(media(12_000, 9_000))).values
    (values * torch.randn(values.shape)).sum().backward()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            in_a_layer = ".layers." in name and "adapter" not in name and "rel_attn_embed" not in name
            assert not (in_a_layer and parameter.grad.any()), name


def test_as_many_layers_are_left_out_as_asked_for():
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Identity() for _ in range(2000)).train()
    out = run_layers(layers, torch.zeros(1, 1, 1), lambda _, values: values + 1, layerdrop=0.3)
    assert 1300 < out.item() < 1500
    assert run_layers(layers.eval(), torch.zeros(1, 1, 1), lambda _, values: values + 1, layerdrop=0.3).item() == 2000


RANK = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from speechlmm_encoders.transformer import run_layers

class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))
    def forward(self, values):
        return run_layers(self.layers, values, lambda layer, given: layer(given), layerdrop=0.5)

rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
model = DistributedDataParallel(Layers())
torch.manual_seed(rank)
for _ in range(4):  # without every gradient in one step, the next one raises
    model(torch.randn(1, 2, 4)).square().sum().backward()
dist.destroy_process_group()
"""


def test_ranks_that_draw_apart_stay_together(tmp_path):
    command = [sys.executable, "-c", RANK, str(tmp_path / "store")]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    faults = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], faults


@pytest.mark.parametrize("kind", MASKED)
def test_nothing_waits_for_the_device(kind):
    """A fake tensor has no content to read."""
    encoder = build(kind, MASKED[kind], apply_spec_augment=True)
    inputs = encoder.config.build_preprocessor()(media(12_000, 9_000))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        encoder({name: mode.from_tensor(value) for name, value in inputs.items()}).values.sum().backward()


@pytest.mark.parametrize("kind", MASKED)
def test_spans_of_frames_and_of_features_are_masked(kind):
    encoder = build(kind, MASKED[kind], apply_spec_augment=True, layer=0)
    inputs = encoder.config.build_preprocessor()(media(30_000))
    first, second = encoder(inputs).values, encoder(inputs).values
    assert not torch.equal(first, second)
    encoder.eval()
    assert torch.equal(encoder(inputs).values, encoder(inputs).values)


@pytest.mark.parametrize("kind", MASKED)
def test_nothing_is_masked_where_both_shares_are_zero(kind):
    still = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    encoder = build(kind, {**MASKED[kind], **still}, apply_spec_augment=True, layer=0)
    inputs = encoder.config.build_preprocessor()(media(30_000))
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    out = encoder(inputs).values
    assert torch.equal(out, encoder.eval()(inputs).values)


def test_what_stands_in_masked_places():
    numbers = SimpleNamespace(mask_time_prob=0.3, mask_time_length=5, mask_time_min_masks=1)
    numbers = SimpleNamespace(**vars(numbers), mask_feature_prob=0.3, mask_feature_length=3, mask_feature_min_masks=1)
    hidden, vector = torch.rand(3, 60, 24) + 1, torch.full((24,), -1.0, requires_grad=True)
    out = mask_spans(hidden, torch.tensor([60, 30, 3]), vector, numbers)
    features = (out == 0).all(1)  # (B, D)
    assert features.any(1).all()
    frames = ((out == -1) | (out == 0)).all(2)  # (B, T)
    assert frames[0].any()
    assert frames[1].any()
    assert not frames[1, 30:].any()
    assert not frames[2].any(), "a clip shorter than a span is left alone"
    kept = ~frames[:, :, None] & ~features[:, None, :]
    assert torch.equal(out[kept], hidden[kept])
    out.sum().backward()
    assert vector.grad is not None


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=4),
    span=st.integers(1, 12),
    prob=st.floats(0.01, 1),
    least=st.integers(0, 3),
)
def test_spans_lie_within_the_row_and_are_as_many_as_said(lengths, span, prob, least):
    mask = draw_spans(torch.tensor(lengths), 50, prob, span, least)
    for row, length in zip(mask.tolist(), lengths, strict=True):
        assert not any(row[length:])
        runs = "".join("x" if one else " " for one in row).split()
        assert all(len(run) >= span for run in runs)
        most = min(length // span, max(least, int(prob * length / span) + 1))
        assert sum(row) <= most * span
        if min(length // span, max(least, int(prob * length / span))):
            assert any(row)
    assert not draw_spans(torch.tensor(lengths), 50, 0.0, span, least).any()


def test_the_share_that_is_masked():
    """One span in a row that has room for one at 27 places: each of its inner frames with the same probability."""
    torch.manual_seed(0)
    mask = draw_spans(torch.full((20_000,), 30), 30, 0.05, 4, 1).float()
    assert torch.equal(mask.sum(1), torch.full((20_000,), 4.0))
    torch.testing.assert_close(mask.mean(0)[3:27], torch.full((24,), 4 / 27), atol=0.01, rtol=0)
    # 1.5 spans on average, before they overlap
    several = draw_spans(torch.full((20_000,), 60), 60, 0.05, 2, 0).float().sum(1)
    assert 2.7 < several.mean() < 3.0


def test_a_sum_of_many_states_does_not_lose_them_to_rounding():
    mix = LayerMix(65)
    states = [torch.full((1, 2, 4), 256.0), *(torch.full((1, 2, 4), 1.0) for _ in range(64))]
    expected = torch.stack(states).mean(0)
    out = mix([state.bfloat16() for state in states])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected.bfloat16(), atol=0, rtol=0)
    states = [torch.randn(2, 3, 4, requires_grad=True) for _ in range(65)]
    direction = torch.randn(2, 3, 4)
    (mix(states) * direction).sum().backward()
    torch.testing.assert_close(states[7].grad, direction / 65)
    dots = torch.stack([(state.detach() * direction).sum() for state in states])
    torch.testing.assert_close(mix.weights.grad, (dots - dots.mean()) / 65, atol=1e-5, rtol=1e-4)


class Devices(TorchDispatchMode):
    """Records where the results of operations are."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.found |= {one.device.type for one in (out if isinstance(out, list | tuple) else [out])}
        return out


def test_a_sum_copies_nothing_to_the_device():
    mix, states = LayerMix(3).to("meta"), [torch.randn(1, 2, 4, device="meta", dtype=torch.bfloat16)] * 3
    with Devices() as devices:
        out = mix(states)
    assert (out.shape, out.dtype, devices.found) == ((1, 2, 4), torch.bfloat16, {"meta"})


def test_without_a_sum_none_is_allocated(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("allocated")

    monkeypatch.setattr(torch, "zeros_like", refuse)
    values = torch.randn(1, 2, 3)
    assert run_layers([], values, lambda _, given: given) is values


def test_what_a_left_out_layer_puts_out_is_what_it_got():
    before, values = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(leave_out(values, before, 1.0), before)
    assert torch.equal(leave_out(values, before, 0.0), values)
