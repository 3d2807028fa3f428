"""Continuous integrate-and-fire against a loop over frames in double precision."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from speechlmm_adapters.cif.config import CIFAdapterConfig
from speechlmm_adapters.cif.fire import accumulate, count, fire, wide_dtype
from speechlmm_core.features import Features
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.objectives.ctc.config import CTCObjectiveConfig
from speechlmm_core.testing.reads import CountedReads

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
CONTEXT = BuildContext(component="audio_adapter", input_size=6, output_size=5, frame_rate=Fraction(50), vocab_size=11)


def build(**options):
    torch.manual_seed(0)
    return CIFAdapterConfig(**options).build(CONTEXT).eval()


def features(*lengths: int) -> Features:
    generator = torch.Generator().manual_seed(sum(lengths))
    values = torch.randn(len(lengths), max(lengths, default=0), 6, generator=generator)
    return Features(values, torch.tensor(lengths, dtype=torch.long))


def naive(frames: torch.Tensor, weights: torch.Tensor, threshold: float, residual: float | None) -> list[torch.Tensor]:
    """One clip, frame by frame, with gradients; what is left at the end fires if it is at least `residual`."""
    fired: list[torch.Tensor] = []
    state, gathered = torch.zeros_like(frames[0] if len(frames) else frames.new_zeros(0)), frames.new_zeros(())
    for frame, weight in zip(frames, weights, strict=True):
        left = weight
        while gathered + left >= threshold:
            need = threshold - gathered
            fired.append(state + need * frame)
            left, state, gathered = left - need, torch.zeros_like(state), torch.zeros_like(gathered)
        state, gathered = state + left * frame, gathered + left
    if residual is not None and gathered >= residual:
        fired.append(state)
    return fired


def ours(frames, weights, threshold, residual):
    sums, _ = accumulate(weights, threshold)
    lengths = count(sums, None if residual is None else residual / threshold)
    return fire(frames, sums, lengths, int(lengths.max())) * threshold, lengths


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    threshold=st.sampled_from([0.3, 0.9, 1.0, 2.5]),
    residual=st.sampled_from([None, 0.1, 0.5, 5.0]),
    largest=st.sampled_from([0.05, 0.6, 1.0, 4.0]),
    seed=st.integers(0, 1000),
)
def test_equals_the_loop(lengths, threshold, residual, largest, seed):
    """Also where weights exceed the threshold, so that one frame fires several times, and where nothing fires."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    frames = torch.randn(*mask.shape, 3, generator=generator, dtype=torch.float64).requires_grad_()
    weights = (torch.rand(mask.shape, generator=generator, dtype=torch.float64) * largest).requires_grad_()
    got, counts = ours(frames, weights * mask, threshold, residual)
    probe = torch.randn(got.shape, generator=generator, dtype=torch.float64)
    expected, total = [], frames.sum() * 0 + weights.sum() * 0
    for row, length in enumerate(lengths):
        expected.append(naive(frames[row, :length], weights[row, :length], threshold, residual))
        total = total + sum((one * probe[row, i]).sum() for i, one in enumerate(expected[-1]))
        assert int(counts[row]) == len(expected[-1])
        assert not got[row, len(expected[-1]) :].any()
        for one, other in zip(got[row], expected[-1], strict=False):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for one, other in zip(
        torch.autograd.grad((got * probe).sum() + frames.sum() * 0 + weights.sum() * 0, (frames, weights)),
        torch.autograd.grad(total, (frames, weights)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=4),
    threshold=st.sampled_from([0.7, 1.0]),
    seed=st.integers(0, 1000),
)
def test_scaled_weights_fire_exactly_the_target(rows, threshold, seed):
    """In single precision, where a plain sum often falls short; also with more tokens than frames."""
    generator = torch.Generator().manual_seed(seed)
    lengths, targets = (torch.tensor(column) for column in zip(*rows, strict=True))
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    weights = (torch.rand(mask.shape, generator=generator) + 1e-3) * mask
    sums, _ = accumulate(weights, threshold, targets)
    assert count(sums, None).tolist() == targets.tolist()
    ones = fire(torch.ones(*mask.shape, 2), sums, targets, int(targets.max()))
    for row, target in enumerate(targets.tolist()):
        torch.testing.assert_close(ones[row, :target], torch.ones(target, 2), rtol=0, atol=1e-5)


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64).requires_grad_()
    weights = torch.rand(2, 7, generator=generator, dtype=torch.float64).requires_grad_()
    lengths, targets = torch.tensor([3, 2]), torch.tensor([3, -1])

    def fired(frames, weights):
        sums, quantity = accumulate(weights, 0.9, targets)
        return fire(frames, sums, lengths, 3), quantity

    assert torch.autograd.gradcheck(fired, (frames, weights))


@pytest.mark.parametrize("threshold", [1.0, 0.6])
@pytest.mark.parametrize("training", [False, True])
def test_the_adapter_equals_the_loop(threshold, training):
    adapter = build(firing_threshold=threshold, mean_frame_rate=20, residual_threshold=0.3).train(training)
    given = features(23, 9, 1)
    targets = torch.tensor([4, -1, 3])
    out = adapter(given, targets)
    for row, length in enumerate(given.lengths.tolist()):
        frames = given.values[row, :length]
        # The predictor by hand: a window of three frames with zeros around the clip.
        padded = torch.cat([torch.zeros(1, 6), frames, torch.zeros(1, 6)])
        windows = torch.stack([padded[i : i + 3].T for i in range(length)])  # (T, D, 3)
        hidden = torch.einsum("tdk,hdk->th", windows, adapter.model.conv.weight) + adapter.model.conv.bias
        hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[1:]).relu()
        weights = torch.sigmoid(hidden @ adapter.model.out.weight[0] + adapter.model.out.bias)
        torch.testing.assert_close(out.extras["quantity"][row], weights.sum() / threshold)
        residual = None if training else 0.3
        if targets[row] >= 0:
            wanted = min(int(targets[row]), adapter.config.max_output_lengths(length, Fraction(50)))
            weights, residual = weights * (threshold * wanted / weights.sum()), threshold * 0.5
            weights = weights.double() * (1 - 1e-12)  # the loop's own rounding must not fire the last frame early
        expected = naive(frames.double(), weights.double(), threshold, residual)
        assert int(out.lengths[row]) == len(expected)
        if expected:
            projected = torch.stack(expected).float() @ adapter.projection.weight.T + adapter.projection.bias
            torch.testing.assert_close(out.values[row, : len(expected)], projected, rtol=1e-5, atol=1e-5)
        assert not out.values[row, len(expected) :].any()


def test_thresholds_are_kept_and_honoured():
    config = CIFAdapterConfig(firing_threshold=0.5, residual_threshold=0.2)
    again = CIFAdapterConfig.model_validate(config.model_dump(mode="json"))
    assert (again.firing_threshold, again.residual_threshold) == (0.5, 0.2)
    adapter, given = build(firing_threshold=0.5, residual_threshold=0.2), features(10)
    torch.nn.init.zeros_(adapter.model.out.weight)
    adapter.model.set_weight(0.171)  # 1.71 in ten frames: three times 0.5, and 0.21 left
    assert adapter(given).lengths.tolist() == [4]
    adapter.model.set_weight(0.169)
    assert adapter(given).lengths.tolist() == [3]
    adapter.train()
    adapter.model.set_weight(0.171)
    assert adapter(given).lengths.tolist() == [3]  # what is left is dropped while training


def test_nothing_fires():
    adapter, given = build(), features(10, 3)
    torch.nn.init.zeros_(adapter.model.out.weight)
    adapter.model.set_weight(0.01)
    out = adapter(given)
    assert out.lengths.tolist() == [0, 0]
    assert out.values.shape == (2, 0, 5)
    (out.values.sum() + out.extras["quantity"].sum()).backward()
    torch.nn.init.constant_(adapter.model.out.bias, -1e4)  # weights of exactly zero cannot be scaled
    scaled = adapter.train()(given, torch.tensor([4, 2]))
    assert scaled.lengths.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 1, 7, 100]),
        ({"firing_threshold": 0.5}, [0, 2, 14, 200]),
        ({"firing_threshold": 3.0}, [0, 1, 3, 34]),
        ({"max_frame_rate": 12.5}, [0, 1, 2, 25]),
    ],
)
def test_bounds(options, expected):
    """The bound is the largest number of frames that can fire; where a smaller one is asked for, it is kept."""
    adapter = build(**options)
    sizes = [0, 1, 7, 100]
    assert [adapter.config.max_output_lengths(size, Fraction(50)) for size in sizes] == expected
    torch.nn.init.constant_(adapter.model.out.bias, 1e4)
    assert adapter(features(*sizes)).lengths.tolist() == expected
    tokens = adapter.train()(features(*sizes), torch.tensor([9999] * 4)).lengths.tolist()
    assert tokens == expected
    assert adapter.config.output_lengths(7, Fraction(50)) is None


def test_a_bound_loses_no_part_of_a_clip():
    """Where more would fire than `max_frame_rate` allows, every frame still flows into what comes out."""
    adapter, given = build(max_frame_rate=5.0), features(40, 8)
    torch.nn.init.zeros_(adapter.model.out.weight)
    adapter.model.set_weight(0.3)  # 12 frames, where 4 may come out, and 2.4, where 1 may
    for training in (False, True):
        out = adapter.train(training)(given)
        assert out.lengths.tolist() == [4, 1]
        torch.testing.assert_close(out.extras["quantity"], torch.tensor([12.0, 2.4]))
        for row, length, fired in ((0, 40, 4), (1, 8, 1)):
            # Equal weights: each fired frame is the mean of its share of the clip.
            means = given.values[row, :length].view(fired, -1, 6).mean(1)
            expected = means @ adapter.projection.weight.T + adapter.projection.bias
            torch.testing.assert_close(out.values[row, :fired], expected, rtol=1e-5, atol=1e-5)
    assert adapter(given, torch.tensor([9, 0])).lengths.tolist() == [4, 0]


@pytest.mark.parametrize("training", [True, False])
def test_told_lengths_are_met_in_every_mode(training):
    """A loss in eval mode sees as many frames as were planned for it."""
    adapter, given = build().train(training), features(40, 30, 7)
    assert adapter(given, torch.tensor([11, 0, 3])).lengths.tolist() == [11, 0, 3]


def test_sums_that_fall_by_rounding():
    """Sums that are computed in parallel may fall by their last digit, also across a bound between fired frames."""
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])[..., None]
    below = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item()
    sums = torch.tensor([[0.5, 1.0, below, 1.5, 2.0]])
    fired = fire(values, sums, torch.tensor([2]), 2)
    torch.testing.assert_close(fired[0, :, 0], torch.tensor([1.5, 12.0]), rtol=1e-6, atol=1e-6)


def test_summed_in_single_precision(monkeypatch):
    """On devices without fp64, targets are met all the same, and what fires is as good as fp32 allows."""
    assert wide_dtype(torch.device("cpu")) == torch.float64
    assert wide_dtype(torch.device("mps")) == torch.float32
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(6, 3000, generator=generator) * 0.3
    values = torch.randn(6, 3000, 2, generator=generator).cumsum(1)
    targets = torch.tensor([1, 7, 100, 333, 449, 2999])
    exact, found = accumulate(weights, 0.7, targets)[1], {}
    for dtype in (torch.float64, torch.float32):
        monkeypatch.setattr("speechlmm_adapters.cif.fire.wide_dtype", lambda device, dtype=dtype: dtype)
        leaf = weights.clone().requires_grad_()
        sums, total = accumulate(leaf, 0.7, targets)
        assert (sums.dtype, total.dtype) == (dtype, dtype)
        assert count(sums, None).tolist() == count(sums, 0.5).tolist() == targets.tolist()
        fired = fire(values, sums, targets, 2999)
        found[dtype] = fired.detach(), torch.autograd.grad(fired.square().mean(), leaf)[0]
    torch.testing.assert_close(total.double(), exact, rtol=1e-5, atol=1e-5)
    for one, other in zip(found[torch.float32], found[torch.float64], strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-3


def test_the_estimate_is_where_untrained_weights_start():
    adapter = build(mean_frame_rate=6.0, firing_threshold=0.9)
    assert adapter.config.output_frame_rate(Fraction(50)) == 6
    assert adapter.config.output_frame_rate(Fraction(25, 4)) == Fraction(125, 36)
    fired = adapter(features(*[500] * 4)).lengths.float().mean() / 10
    assert 2 < fired < 18


@pytest.mark.parametrize("most", [None, 5.0])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("targets", [[5, -1], None])
@pytest.mark.parametrize("device", ["meta", GPU])
def test_one_number_is_read_from_the_device(device, targets, training, most):
    """The size of the output; nothing else waits for the device, forward or backward."""
    adapter = build(ctc_loss_weight=1.0, max_frame_rate=most).train(training).to(device)
    clips = features(30, 12)
    clips = Features(clips.values.to(device), clips.lengths.to(device))
    told = None if targets is None else torch.tensor(targets, device=device)
    if device == "cuda":
        adapter(clips, told).values.sum().backward()  # libraries wait when they are first used
    with CountedReads(5) as mode:
        out = adapter(clips, told)
        (out.values.sum() + out.extras["quantity"].sum()).backward()
    assert mode.reads == 1


def test_losses_and_their_frames():
    config = CIFAdapterConfig(ctc_loss_weight=0.2, quantity_loss_weight=[[0, 1], [1, 0]], ctc_characters="abc")
    losses = config.objectives("video_adapter")
    assert set(losses) == {"quantity", "ctc"}
    assert losses["quantity"].weight == [(0, 1), (1, 0)]
    assert all(loss.stages == ("video_adapter",) for loss in losses.values())
    plain = CTCObjectiveConfig(characters="abc")
    assert losses["ctc"].encode_transcript("A  cab", None) == plain.encode_transcript("A  cab", None)
    assert losses["ctc"].min_frames([1, 1, 2]) == 4
    spaced = CIFAdapterConfig(ctc_loss_weight=0.2, ctc_vocabulary="text_decoder", ctc_leading_space=True)
    assert spaced.objectives("audio_adapter")["ctc"].leading_space
    assert not losses["ctc"].leading_space
    assert config.objective_frames("ctc", 100, Fraction(50)) == 100
    assert CIFAdapterConfig(max_frame_rate=5).objective_frames("quantity", 100, Fraction(50)) == 10
    assert set(CIFAdapterConfig().objectives("audio_adapter")) == {"quantity"}
    assert not CIFAdapterConfig(quantity_loss_weight=0).objectives("audio_adapter")
    assert "ctc_frames" not in build()(features(4)).extras


@pytest.mark.parametrize(
    "options",
    [{"firing_threshold": 0}, {"residual_threshold": -1}, {"quantity_loss_weight": [[1, 0], [0, 1]]}, {"theta": 1}],
)
def test_wrong_options(options):
    with pytest.raises(ValidationError):
        CIFAdapterConfig(**options)
