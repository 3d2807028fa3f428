"""Going on at a step costs the same wherever it lies, and finds the same micro-batches."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlmm_train.batching.mix import Group, Mix
from speechlmm_train.batching.plan import BatchPlan
from speechlmm_train.batching.stream import Stream

KINDS = ["random", "length", "alternating", "sequential"]
GROUPS = [Group("a", "asr"), Group("b", "st", 2.0), Group("b", "asr", 2.0)]


def plan_of(count, mixing, *, group=2, weighted=True, seed=1):
    rng = np.random.default_rng(seed)
    positions = rng.integers(5, 40, count)
    members = np.arange(count) % (3 if weighted else 1)
    mix = None
    if mixing is not None:
        groups = [Group(one.dataset, one.task, 1.0 if weighted else None) for one in GROUPS[: 3 if weighted else 1]]
        mix = Mix.of(groups, members, positions, mixing=mixing)
    return BatchPlan(positions, 2 * positions, token_budget=60, micro_batches_per_step=group, seed=seed, mix=mix)


def through_json(position):
    return json.loads(json.dumps(position))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(3, 60),
    st.sampled_from([None, *KINDS]),
    st.sampled_from([1, 2, 3, 4]),
    st.booleans(),
    st.integers(0, 200),
    st.integers(0, 5),
)
def test_a_position_leads_to_the_same_micro_batches(count, mixing, group, weighted, step, later):
    walked = plan_of(count, mixing, group=group, weighted=weighted)
    expected = [[walked.item(step + s, n) for n in range(group)] for s in range(later + 4)]
    jumped = plan_of(count, mixing, group=group, weighted=weighted)
    jumped.go_to(through_json(walked.position(step)))
    assert [[jumped.item(step + s, n) for n in range(group)] for s in range(later + 4)] == expected
    again = plan_of(count, mixing, group=group, weighted=weighted)
    again.go_to(through_json(jumped.position(step + later)))  # a resumed run's own checkpoint
    assert [[again.item(step + s, n) for n in range(group)] for s in range(later, later + 4)] == expected[later:]
    assert pickle.loads(pickle.dumps(again)).step(step + later) == [item.indices for item in expected[later]]
    earlier = max(0, step - 3)  # what lies before is still found
    assert again.step(earlier) == walked.step(earlier)
    assert list(map(list, again.examples(earlier, step))) == list(map(list, walked.examples(earlier, step)))
    np.testing.assert_array_equal(again.epoch(0).order, walked.epoch(0).order)


@pytest.mark.parametrize("mixing", [None, *KINDS])
def test_the_work_does_not_grow_with_the_position(mixing, monkeypatch):
    made = Counter()
    make = Stream._make

    def counted(self, epoch, start):
        made[epoch] += 1
        return make(self, epoch, start)

    walked = plan_of(300, mixing)
    steps = [int(epochs * walked.epoch_steps()) + 3 for epochs in (1, 5, 60)]
    positions = {step: through_json(walked.position(step)) for step in steps}
    expected = {step: walked.step(step) for step in steps}
    monkeypatch.setattr(Stream, "_make", counted)
    work = []
    for step in steps:
        made.clear()
        jumped = plan_of(300, mixing)
        jumped.go_to(positions[step])
        assert jumped.step(step) == expected[step]
        work.append(sum(made.values()))
    # A step may lie across the end of an epoch; of each of two tasks, the epochs beside it are made, too.
    assert max(work) <= (2 if mixing != "alternating" else 6)
    made.clear()
    assert plan_of(300, mixing).step(steps[-1]) == expected[steps[-1]]
    assert sum(made.values()) > 50, "what a position spares"
