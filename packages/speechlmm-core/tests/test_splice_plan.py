"""The plan of a batch against a loop over samples and positions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlmm_core.errors import DataError
from speechlmm_core.splice.plan import AdditiveLayout, build_layout, plan_batch

PAD = 99
INPUTS = ("audio", "video")


class Text:
    def __init__(self, ids, supervised):
        self.ids, self.supervised = ids, supervised


class Media:
    def __init__(self, kind):
        self.item = {"type": kind}


@st.composite
def batches(draw):
    samples = []
    for _ in range(draw(st.integers(1, 4))):
        pieces, frames = [Text([1], [False])], []
        for _ in range(draw(st.integers(0, 4))):
            if draw(st.booleans()):
                pieces.append(Media(draw(st.sampled_from(INPUTS))))
                frames.append(draw(st.integers(0, 4)))
            else:
                n = draw(st.integers(0, 4))
                pieces.append(Text(list(range(10, 10 + n)), draw(st.lists(st.booleans(), min_size=n, max_size=n))))
        samples.append((pieces, frames))
    return samples


def walk(samples):
    """Position by position: (token id, supervised, None or (input, row of the input, frame))."""
    rows = dict.fromkeys(INPUTS, 0)
    out = []
    for pieces, frames in samples:
        positions, seen = [], 0
        for piece in pieces:
            if isinstance(piece, Media):
                kind = piece.item["type"]
                positions += [(PAD, False, (kind, rows[kind], k)) for k in range(frames[seen])]
                rows[kind] += 1
                seen += 1
            else:
                positions += [(i, s, None) for i, s in zip(piece.ids, piece.supervised, strict=True)]
        out.append(positions)
    return out, rows


def longest(samples):
    found = dict.fromkeys(INPUTS, 0)
    for pieces, frames in samples:
        kinds = [piece.item["type"] for piece in pieces if isinstance(piece, Media)]
        for kind, n in zip(kinds, frames, strict=True):
            found[kind] = max(found[kind], n)
    return found


@settings(max_examples=150, deadline=None)
@given(batches(), st.sampled_from(["packed", "right", "left"]))
def test_plan_equals_a_loop(samples, mode):
    layouts = [build_layout(pieces, frames, PAD) for pieces, frames in samples]
    plan = plan_batch(
        layouts,
        packed=mode == "packed",
        padding_side="left" if mode == "left" else "right",
        pad_token_id=PAD,
        input_order=INPUTS,
    )
    expected, counts = walk(samples)
    T = longest(samples)
    R, N = plan["input_ids"].shape
    flat_at, at = [], 0
    for r, positions in enumerate(expected):
        start = at if mode == "packed" else r * N + (N - len(positions) if mode == "left" else 0)
        flat_at.append([start + i for i in range(len(positions))])
        at += len(positions)
    assert ((1, at) if mode == "packed" else (len(samples), max(map(len, expected)))) == (R, N)
    starts = {"audio": R * N, "video": R * N + counts["audio"] * T["audio"]}
    ids, base = plan["input_ids"].flatten(), plan["splice"]["base"].flatten()
    used, targets = set(), []
    for positions, flats in zip(expected, flat_at, strict=True):
        for i, ((token, supervised, medium), flat) in enumerate(zip(positions, flats, strict=True)):
            used.add(flat)
            assert ids[flat] == token
            assert plan["position_ids"].flatten()[flat] == i
            if medium is None:
                assert base[flat] == flat
            else:
                kind, row, frame = medium
                assert base[flat] == starts[kind] + row * T[kind] + frame
            if supervised and i > 0:
                targets.append((flat - 1, token))
    assert (
        list(zip(plan["supervised"]["positions"].tolist(), plan["supervised"]["ids"].tolist(), strict=True)) == targets
    )
    assert plan["splice"]["num_frames"] == [T["audio"], T["video"]]
    if mode == "packed":
        lengths = [len(positions) for positions in expected]
        assert plan["segments"]["lengths"] == lengths
        assert plan["segments"]["cu_seqlens"].tolist() == [0, *np.cumsum(lengths)]
        assert plan["segments"]["cu_seqlens"].dtype == torch.int32
        assert "attention_mask" not in plan
    else:
        mask = plan["attention_mask"].flatten()
        assert {i for i in range(R * N) if mask[i]} == used
        assert all(ids[i] == PAD for i in range(R * N) if not mask[i])


def test_the_first_token_of_a_sample_is_never_a_target():
    layouts = [build_layout([Text([5, 6], [True, True])], [], PAD) for _ in range(2)]
    plan = plan_batch(layouts, packed=True, pad_token_id=PAD, input_order=())
    assert plan["supervised"]["positions"].tolist() == [0, 2]
    assert plan["supervised"]["ids"].tolist() == [6, 6]


def test_additive_rows_point_at_frames_and_else_at_the_zero_row():
    layouts = [build_layout([Text([1, 2], [False, True]), Media("audio")], [3], PAD) for _ in range(2)]
    extra = AdditiveLayout(np.array([-1, 0, 0, -1, -1], np.int32), np.array([0, 2, 1, 0, 0], np.int32))
    plan = plan_batch(layouts, packed=True, pad_token_id=PAD, input_order=("audio",), additive=[None, extra])
    zero = 10 + 6
    assert plan["splice"]["additive"].tolist() == [[zero] * 6 + [10 + 3 + 2, 10 + 3 + 1, zero, zero]]


@pytest.mark.parametrize(("pieces", "frames"), [([Media("audio")], []), ([Text([1], [False])], [4])])
def test_number_of_media_must_fit(pieces, frames):
    with pytest.raises(DataError, match=r"got \d media for \d placeholders"):
        build_layout(pieces, frames, PAD)


def test_bad_batches_are_refused():
    with pytest.raises(DataError, match="at least one sample"):
        plan_batch([], packed=True, pad_token_id=PAD, input_order=())
    with pytest.raises(DataError, match="negative"):
        build_layout([Media("audio")], [-1], PAD)
    with pytest.raises(DataError, match="'speaker'; the model's inputs are audio"):
        plan_batch([build_layout([Media("speaker")], [1], PAD)], packed=True, pad_token_id=PAD, input_order=("audio",))
