"""The gather against a loop, without a host read, with exact gradients; the compaction against dropping by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from speechlmm_core.errors import ConfigError
from speechlmm_core.features import Features
from speechlmm_core.splice.gather import compact, splice
from speechlmm_core.splice.plan import AdditiveLayout, build_layout, plan_batch

PAD, D = 0, 3


class Text:
    def __init__(self, ids, supervised=None):
        self.ids, self.supervised = ids, supervised or [False] * len(ids)


class Media:
    def __init__(self, kind="audio"):
        self.item = {"type": kind}


def two_samples():
    first = build_layout([Text([1, 2]), Media(), Text([3, 4], [False, True])], [3], PAD)
    second = build_layout([Text([5]), Media(), Text([6]), Media()], [1, 2], PAD)
    return [first, second]


def test_splice_equals_a_loop_and_its_gradient_is_exact():
    plan = plan_batch(two_samples(), packed=False, pad_token_id=PAD, input_order=("audio",))
    text = torch.randn(2, 7, D, dtype=torch.double, requires_grad=True)
    frames = torch.randn(3, 5, D, dtype=torch.double, requires_grad=True)  # two frames more than the plan needs

    def spliced(text, frames):
        return splice(text, [Features(frames, torch.tensor([3, 1, 2]))], plan["splice"])

    expected = text.detach().clone()
    expected[0, 2:5] = frames[0, :3].detach()
    expected[1, 1:2] = frames[1, :1].detach()
    expected[1, 3:5] = frames[2, :2].detach()
    torch.testing.assert_close(spliced(text, frames).detach(), expected, rtol=0, atol=0)
    assert torch.autograd.gradcheck(spliced, (text, frames))


def test_additive_stream_is_added():
    layouts = two_samples()
    import numpy as np

    extra = AdditiveLayout(np.array([0] * 7, np.int32), np.array([0, 1, 2, 0, 1, 2, 0], np.int32))
    plan = plan_batch(layouts, packed=True, pad_token_id=PAD, input_order=("audio",), additive=[extra, None])
    plain = plan_batch(layouts, packed=True, pad_token_id=PAD, input_order=("audio",))
    text, frames = torch.randn(1, 12, D), torch.randn(3, 3, D)
    features = [Features(frames, torch.tensor([3, 1, 2]))]
    expected = splice(text, features, plain["splice"])
    expected[0, :7] += frames[0, [0, 1, 2, 0, 1, 2, 0]]
    torch.testing.assert_close(splice(text, features, plan["splice"]), expected)


@pytest.mark.parametrize("packed", [True, False])
def test_nothing_is_read_from_the_device(packed):
    plan = plan_batch(two_samples(), packed=packed, pad_token_id=PAD, input_order=("audio",))["splice"]
    shape = (*plan["base"].shape, D)
    with FakeTensorMode(allow_non_fake_inputs=True):
        features = Features(torch.empty(3, 3, D), torch.empty(3, dtype=torch.long))
        assert splice(torch.empty(shape), [features], plan).shape == shape


def test_too_few_frames_are_reported():
    plan = plan_batch(two_samples(), packed=True, pad_token_id=PAD, input_order=("audio",))
    with pytest.raises(ConfigError, match="returned 2 frames where its configuration declares 3"):
        splice(torch.zeros(1, 12, D), [Features(torch.zeros(3, 2, D), torch.tensor([2, 1, 2]))], plan["splice"])


@st.composite
def dynamic_batches(draw):
    samples = []
    for number in range(draw(st.integers(1, 4))):
        pieces, frames, actual = [Text([10 * number + 1])], [], []
        for _ in range(draw(st.integers(0, 4))):
            if draw(st.booleans()):
                pieces.append(Media(draw(st.sampled_from(["audio", "video"]))))
                frames.append(draw(st.integers(0, 4)))
                kind = pieces[-1].item["type"]
                actual.append(draw(st.integers(0, frames[-1])) if kind == "audio" else frames[-1])
            else:
                n = draw(st.integers(1, 3))
                pieces.append(Text(list(range(50, 50 + n)), draw(st.lists(st.booleans(), min_size=n, max_size=n))))
        samples.append((pieces, frames, actual))
    return samples


@settings(max_examples=150, deadline=None)
@given(dynamic_batches(), st.sampled_from(["packed", "right", "left"]))
def test_compaction_equals_a_plan_with_the_true_lengths(samples, mode):
    options = {
        "packed": mode == "packed",
        "padding_side": "left" if mode == "left" else "right",
        "pad_token_id": PAD,
        "input_order": ("audio", "video"),
    }
    bound = plan_batch(
        [build_layout(pieces, frames, PAD) for pieces, frames, _ in samples], dynamic_inputs=("audio",), **options
    )
    truth = plan_batch([build_layout(pieces, actual, PAD) for pieces, _, actual in samples], **options)
    kinds = [[piece.item["type"] for piece in pieces if isinstance(piece, Media)] for pieces, _, _ in samples]
    pairs = [pair for k, (_, _, actual) in zip(kinds, samples, strict=True) for pair in zip(k, actual, strict=True)]
    features = []
    for j, kind in enumerate(("audio", "video")):
        lengths = [n for k, n in pairs if k == kind]
        values = torch.randn(len(lengths), max(lengths, default=0), D)
        features.append(Features(values, torch.tensor(lengths, dtype=torch.long)))
        assert j == 0 or bound["splice"]["num_frames"][j] == max(lengths, default=0)
    table = torch.randn(100, D)

    got = compact(bound, [features[0].lengths, None])
    spliced = splice(table[bound["input_ids"]], features, got["splice"])
    expected = splice(table[truth["input_ids"]], features, truth["splice"])

    keep = got.get("attention_mask", torch.ones_like(got["input_ids"])).bool()
    true = truth.get("attention_mask", torch.ones_like(truth["input_ids"])).bool()
    torch.testing.assert_close(spliced[keep], expected[true], rtol=0, atol=0)
    assert got["input_ids"][keep].tolist() == truth["input_ids"][true].tolist()
    assert got["position_ids"][keep].tolist() == truth["position_ids"][true].tolist()
    assert (got["input_ids"][~keep] == PAD).all()
    # Targets: the same tokens, predicted from the same (n-th kept) positions.
    place, true_place = keep.flatten().cumsum(0) - 1, true.flatten().cumsum(0) - 1
    assert got["supervised"]["ids"].tolist() == truth["supervised"]["ids"].tolist()
    positions, true_positions = got["supervised"]["positions"], truth["supervised"]["positions"]
    assert place[positions].tolist() == true_place[true_positions].tolist()
    assert keep.flatten()[positions].all()
    if mode == "packed":
        assert got["segments"]["lengths"] == truth["segments"]["lengths"]
        assert got["segments"]["cu_seqlens"].tolist() == truth["segments"]["cu_seqlens"].tolist()
        assert got["segments"]["cu_seqlens"].dtype == torch.int32
    elif mode == "right":
        assert all(row == sorted(row, reverse=True) for row in keep.int().tolist())
    else:
        assert all(row == sorted(row) for row in keep.int().tolist())


def test_a_target_that_loses_its_context_is_left_out():
    layout = build_layout([Media(), Text([7, 8], [True, True])], [2], PAD)
    for packed in (True, False):
        plan = plan_batch([layout], packed=packed, pad_token_id=PAD, input_order=("audio",), dynamic_inputs=("audio",))
        got = compact(plan, [torch.tensor([0])])
        assert got["supervised"]["ids"].tolist() == [-100, 8]
        assert got["supervised"]["positions"].tolist()[1] == 0


def test_padded_compaction_reads_nothing_from_the_device():
    plan = plan_batch(two_samples(), packed=False, pad_token_id=PAD, input_order=("audio",), dynamic_inputs=("audio",))
    with FakeTensorMode(allow_non_fake_inputs=True):
        got = compact(plan, [torch.empty(3, dtype=torch.long)])
        assert got["splice"]["base"].shape == plan["splice"]["base"].shape
