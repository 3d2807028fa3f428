"""Going on at a step costs the same wherever it lies, and finds the same micro-batches."""

import hashlib
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


def recorded(mixing, budget):
    """Digest of three epochs of a plan of 2,000 examples."""
    seconds = np.array([0.5 + (number * 7919 % 2000) ** 2 / 140_000 for number in range(2000)])
    frames = np.ceil(seconds * 50).astype(np.int64)
    positions = frames // 4 + 30 + np.arange(2000) * 31 % 17
    groups = [Group("a", "asr"), Group("b", "st"), Group("b", "asr")]
    mix = Mix.of(groups, np.arange(2000) % 3, positions, mixing=mixing, task_weights={"asr": 0.6, "st": 0.4})
    plan = BatchPlan(positions, frames, micro_batches_per_step=3, seed=4, window=500, mix=mix, **budget)
    digest = hashlib.sha256()
    for table in map(plan.epoch, range(3)):
        digest.update(b"".join(np.asarray(one, "<i8").tobytes() for one in (table.order, table.ends, table.rounds)))
    return digest.hexdigest()[:12]


RECORDED = {
    "random": ["bb9d45f3afe2", "79e21495d5d9", "6c45cc56fd55"],
    "length": ["f51e3ac4989e", "dd2731192dd5", "cd7553ac3f6e"],
    "alternating": ["6f4869c918e7", "32dd413a07a8", "8a3531a7bbfc"],
    "sequential": ["fc279de6ec21", "2498f39b0eb9", "31de95ad1c75"],
}


@pytest.mark.parametrize("mixing", KINDS)
def test_plans_do_not_change_between_versions(mixing):
    """As those of single tasks in the tests of the plan: a run that is resumed goes on with the same batches."""
    budgets = [{"token_budget": 2500}, {"token_budget": 2500, "packed": False}, {"frame_budget": 6000}]
    assert [recorded(mixing, budget) for budget in budgets] == RECORDED[mixing]


@pytest.mark.parametrize("group", [1, 3])
def test_alternation_takes_whole_steps_of_the_tasks_streams(group):
    """Against a walk through the tasks' streams, a micro-batch at a time."""
    plan = plan_of(90, "alternating", group=group)
    streams = plan_of(90, "alternating", group=group)._stream.streams
    at = [0] * len(streams)
    tasks = plan.mix.task_numbers
    for step in range(int(3 * plan.epoch_steps())):
        items = [plan.item(step, number) for number in range(group)]
        (task,) = {int(tasks[index]) for item in items for index in item.indices}
        expected = [streams[task].item(at[task] + number) for number in range(group)]
        assert [(item.indices, item.rounds) for item in items] == [(one.indices, one.rounds) for one in expected]
        at[task] += group
