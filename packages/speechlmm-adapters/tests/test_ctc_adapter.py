"""Compression by CTC against a loop over runs, and its loss against torch's own."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional as F

from speechlmm_adapters.ctc.config import CTCAdapterConfig
from speechlmm_adapters.ctc.objective_config import AdapterCTCObjectiveConfig
from speechlmm_core.features import Features
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.losses.logsumexp import chunked_argmax, chunked_argmax_logsumexp
from speechlmm_core.testing.reads import CountedReads
from speechlmm_core.testing.toy import ToyTextDecoder

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
CONTEXT = BuildContext(component="audio_adapter", input_size=6, output_size=5, frame_rate=Fraction(50), vocab_size=4)


def build(seed=0, ctx=CONTEXT, **options):
    torch.manual_seed(seed)
    return CTCAdapterConfig(**options).build(ctx).eval()


def features(*lengths: int, seed: int = 0) -> Features:
    """Frames that often stay much the same for a while."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(lengths), max(lengths, default=0), 6, generator=generator)
    values = values + 3 * torch.randn(values.shape, generator=generator).cumsum(1).div(4).round()
    return Features(values.double(), torch.tensor(lengths, dtype=torch.long))


def naive(adapter, frames: torch.Tensor) -> list[torch.Tensor]:
    """One clip, run by run, with gradients."""
    config, merged = adapter.config, []
    if not len(frames):
        return []
    probabilities, labels = torch.softmax(frames @ adapter.model.weight.T, dim=1).max(dim=1)
    runs = [[i for i, _ in run] for _, run in groupby(enumerate(labels.tolist()), key=lambda pair: pair[1])]
    if config.drop_blanks:
        runs = [run for run in runs if int(labels[run[0]]) != adapter.blank]
    most = config.max_output_lengths(len(frames), Fraction(50))
    size = -(-len(runs) // most) if runs else 1
    for start in range(0, len(runs), size):
        group = [i for run in runs[start : start + size] for i in run]
        p = probabilities[group]
        weights = {"mean": torch.ones_like(p), "weighted": p, "softmax": p.exp()}[config.merge]
        merged.append((weights / weights.sum()) @ frames[group])
    return merged


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    merge=st.sampled_from(["mean", "weighted", "softmax"]),
    drop_blanks=st.booleans(),
    most=st.sampled_from([None, 1, 4, 0.25, 1.0]),
    seed=st.integers(0, 1000),
)
def test_equals_the_loop(lengths, merge, drop_blanks, most, seed):
    adapter = build(seed, merge=merge, drop_blanks=drop_blanks, max_compressed_length=most).double()
    adapter.projection = torch.nn.Identity()
    given = features(*lengths, seed=seed)
    given.values.requires_grad_()
    out = adapter(given)
    probe = torch.randn(out.values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    inputs = (given.values, adapter.model.weight)

    def nothing():
        return given.values.sum() * 0 + adapter.model.weight.sum() * 0

    total = nothing()
    for row, length in enumerate(lengths):
        expected = naive(adapter, given.values[row, :length])
        assert int(out.lengths[row]) == len(expected)
        assert len(expected) <= adapter.config.max_output_lengths(length, Fraction(50))
        assert not out.values[row, len(expected) :].any()
        for i, one in enumerate(expected):
            torch.testing.assert_close(out.values[row, i], one, rtol=1e-9, atol=1e-9)
            total = total + one @ probe[row, i]
    got = torch.autograd.grad((out.values * probe).sum() + nothing(), inputs)
    for one, other in zip(got, torch.autograd.grad(total, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    if merge != "mean" and most == 1 and bool((out.lengths < given.lengths).any()) and not drop_blanks:
        assert got[1].any()  # the head learns through the merge


def test_a_likely_frame_counts_for_more():
    """Probabilities are the weights, not their logarithms, which would favour unlikely frames."""
    adapter = build(merge="weighted")
    weight = torch.zeros(5, 6)
    weight[0, 0] = 1.0
    adapter.model.weight.data = weight
    adapter.projection = torch.nn.Identity()
    frames = torch.zeros(1, 2, 6)
    frames[0, :, 0], frames[0, :, 1] = torch.tensor([9.0, 0.1]), torch.tensor([1.0, 0.0])
    p = torch.softmax(frames[0] @ weight.T, dim=1)[:, 0]
    out = adapter(Features(frames, torch.tensor([2])))
    assert out.values[0, 0, 1] > 0.7
    torch.testing.assert_close(out.values[0, 0, 1], p[0] / p.sum())


def test_only_blanks():
    """Kept, they become one frame; dropped, they leave none."""
    weight = torch.zeros(5, 6)
    weight[4] = 1.0
    given = Features(torch.ones(2, 7, 6, requires_grad=True), torch.tensor([7, 3]))
    for drop_blanks, expected in ((False, [1, 1]), (True, [0, 0])):
        adapter = build(drop_blanks=drop_blanks)
        assert adapter.blank == 4
        adapter.model.weight.data = weight
        out = adapter(given)
        assert out.lengths.tolist() == expected
        assert out.values.shape == (2, expected[0], 5)
        out.values.sum().backward()
    assert build(vocabulary="characters").blank == 0


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("vocabulary", ["text_decoder", "characters"])
@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_that_of_every_medium(full, vocabulary, training):
    """The last media of a batch keep their targets; media without one, or of too few frames, add nothing."""
    adapter = build(vocabulary=vocabulary, characters="abcd").double().train(training)
    objective = adapter.config.objectives("audio_adapter")["ctc"].build(CONTEXT)
    objective.name, objective.full_vocabulary = "audio_adapter_ctc", 4096 if full else 1
    given = features(12, 9, 11, 2, 10)
    given.values.requires_grad_()
    targets = [[1, 2, 2], [3], None, [1, 1], [2, 3, 1, 1]]
    ids = torch.zeros(5, 4, dtype=torch.long)
    for row, target in enumerate(targets):
        ids[row, : len(target or ())] = torch.tensor(target or (), dtype=torch.long)
    batch = {
        "ids": ids,
        "lengths": torch.tensor([len(one or ()) for one in targets]),
        "valid": torch.tensor([True, True, False, False, True]),
    }
    decoder = ToyTextDecoder(4, 5)
    loss = objective({"audio_adapter": adapter(given)}, {"targets": {"audio_adapter_ctc": batch}}, decoder)
    assert loss.unit == "audio_adapter_ctc_targets"
    expected = torch.zeros((), dtype=torch.float64)
    for row in (0, 1, 4):
        log_probs = (given.values[row, : given.lengths[row]] @ adapter.model.weight.T).log_softmax(1)
        target = torch.tensor(targets[row])
        expected = expected + F.ctc_loss(
            log_probs, target, [len(log_probs)], [len(target)], blank=adapter.blank, reduction="sum"
        )
    torch.testing.assert_close(loss.sum.double(), expected, rtol=1e-6, atol=1e-6)
    inputs = (given.values, adapter.model.weight)
    for one, other in zip(torch.autograd.grad(loss.sum, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    empty = {key: value[:, :0] if key == "ids" else value for key, value in batch.items()}
    nothing = objective({"audio_adapter": adapter(given)}, {"targets": {"audio_adapter_ctc": empty}}, decoder)
    assert float(nothing.sum.detach()) == 0
    nothing.sum.backward()


def test_without_targets_each_share_is_nothing():
    adapter = build().train()
    objective = AdapterCTCObjectiveConfig(stage="audio_adapter").build(CONTEXT)
    objective.name = "ctc"
    targets = {"ids": torch.zeros(3, 0, dtype=torch.long), "lengths": torch.zeros(3, dtype=torch.long)}
    batch = {
        "targets": {"ctc": {**targets, "valid": torch.zeros(3, dtype=torch.bool)}},
        "samples": {"count": 2, "media": {"audio": torch.tensor([0, 0, 1])}},
    }
    given = features(5, 2, 3)
    out = adapter(Features(given.values.float(), given.lengths))
    loss = objective({"audio_adapter": out}, batch, ToyTextDecoder(4, 5))
    assert loss.sum.item() == 0
    assert loss.by_sample.tolist() == [0, 0]


def test_labels_and_log_sum_exp_in_chunks():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 6, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(13, 6, generator=generator, dtype=torch.float64).requires_grad_()
    logits = hidden @ weight.T
    best, logsumexp = chunked_argmax_logsumexp(hidden, weight, chunk_size=4)
    assert torch.equal(best, logits.argmax(1))
    assert torch.equal(chunked_argmax(hidden, weight, chunk_size=4), best)
    torch.testing.assert_close(logsumexp, logits.logsumexp(1))
    assert not best.requires_grad
    assert torch.autograd.gradcheck(lambda h, w: chunked_argmax_logsumexp(h, w, chunk_size=4)[1], (hidden, weight))


def test_bounds_and_objective():
    config = CTCAdapterConfig(max_compressed_length=0.3)
    assert [config.max_output_lengths(size, Fraction(50)) for size in (0, 1, 10, 11)] == [0, 1, 3, 4]
    config = CTCAdapterConfig(max_compressed_length=4)
    assert [config.max_output_lengths(size, Fraction(50)) for size in (0, 3, 4, 11)] == [0, 3, 4, 4]
    again = CTCAdapterConfig.model_validate(CTCAdapterConfig(max_compressed_length=1.0).model_dump(mode="json"))
    assert again.max_output_lengths(11, Fraction(50)) == 11
    assert config.output_frame_rate(Fraction(50)) == 8
    assert config.output_frame_rate(Fraction(25, 4)) == Fraction(25, 4)
    assert config.output_lengths(7, Fraction(50)) is None
    (loss,) = config.objectives("video_adapter").values()
    assert isinstance(loss, AdapterCTCObjectiveConfig)
    assert (loss.weight, loss.stages, config.objective_frames("ctc", 11, Fraction(50))) == (0.1, ("video_adapter",), 11)
    silent = build(ctc_loss_weight=0)
    assert not silent.config.objectives("audio_adapter")
    assert not silent.train()(Features(torch.ones(1, 3, 6), torch.tensor([3]))).extras


@pytest.mark.parametrize(
    "options",
    [
        {"max_compressed_length": 0},
        {"max_compressed_length": 1.5},
        {"merge": "max"},
        {"characters": "aa"},
        {"ctc_loss_weight": -1},
    ],
)
def test_wrong_options(options):
    with pytest.raises(ValidationError):
        CTCAdapterConfig(**options)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("merge", ["mean", "softmax"])
@pytest.mark.parametrize("device", ["meta", GPU])
def test_one_number_is_read_from_the_device(device, merge, training):
    """The size of the output; nothing else waits for the device, forward or backward."""
    adapter = build(merge=merge, drop_blanks=True, max_compressed_length=0.5).double().train(training).to(device)
    clips = features(30, 12)
    clips = Features(clips.values.to(device), clips.lengths.to(device))
    if device == "cuda":
        adapter(clips).values.sum().backward()  # libraries wait when they are first used
    with CountedReads(5) as mode:
        adapter(clips).values.sum().backward()
    assert mode.reads == 1


def test_a_head_that_nothing_teaches_is_frozen_and_told_once(caplog):
    """Else it wants a gradient that never comes."""
    ctx = replace(CONTEXT, component="some_adapter")
    for _ in range(2):
        adapter = build(ctx=ctx, ctc_loss_weight=0)
        assert [name for name, p in adapter.named_parameters() if not p.requires_grad] == ["model.weight"]
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith("some_adapter: with `ctc_loss_weight: 0` and `merge: mean` nothing teaches the head")
    clips = features(9)
    adapter(Features(clips.values.float(), clips.lengths)).values.sum().backward()
    assert all(p.grad is not None for p in adapter.parameters() if p.requires_grad)
    assert build(ctc_loss_weight=0, merge="weighted").model.weight.requires_grad
    assert build(ctc_loss_weight=[(0, 0), (1, 0.1)]).model.weight.requires_grad
    assert len(caplog.records) == 1
