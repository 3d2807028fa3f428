"""Mixing datasets and tasks: what the plan holds against what was asked for."""

import math
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlmm_core.errors import ConfigError, DataError
from speechlmm_train.batching.mix import Group, Mix
from speechlmm_train.batching.plan import BatchPlan

# Five groups of four datasets and three tasks; sizes differ by a factor of a hundred.
GROUPS = [Group("big", "asr"), Group("big", "st"), Group("small", "st"), Group("tiny", "sqa"), Group("text", "mt")]
SIZES = [2000, 900, 300, 25, 700]
MEMBERS = np.repeat(np.arange(5), SIZES)
TASK = np.array([group.task for group in GROUPS])[MEMBERS]
DATASET = np.array([group.dataset for group in GROUPS])[MEMBERS]


def lengths(seed=0):
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(MEMBERS))  # groups lie anywhere in the data
    scale = np.array([20, 30, 45, 90, 60])[MEMBERS]
    return shuffled, (scale * np.exp(0.4 * rng.standard_normal(len(MEMBERS)))).astype(int) + 5


SHUFFLED, POSITIONS = lengths()
MEMBERS, TASK, DATASET = MEMBERS[SHUFFLED], TASK[SHUFFLED], DATASET[SHUFFLED]
POSITIONS = POSITIONS[SHUFFLED]
WEIGHTS = {"asr": 3, "st": 2, "sqa": 1, "mt": 2}


def mixed(mixing="random", seed=0, groups=GROUPS, positions=POSITIONS, members=MEMBERS, batch=None, **kwargs):
    mix = Mix.of(groups, members, positions, mixing=mixing, **kwargs)
    sizes = batch or {"token_budget": 900}
    plan = {"micro_batches_per_step": 4, "window": 500, "oversized": "alone", **sizes}
    return BatchPlan(positions, np.zeros(len(positions)), seed=seed, mix=mix, **plan)


def epochs(plan, first, count):
    """Each epoch's examples, from micro-batches taken one by one."""
    found = {epoch: [] for epoch in range(first, first + count)}
    number = 0
    while (item := plan.item(number // plan.micro_batches_per_step, number % plan.micro_batches_per_step)) and (
        item.epoch < first + count
    ):
        if item.epoch >= first:
            found[item.epoch] += item.indices
        number += 1
    return found


def chi_squared(observed, shares):
    expected = np.asarray(shares) * sum(observed)
    return float(((np.asarray(observed) - expected) ** 2 / expected).sum())


# The value that a chi-squared variable exceeds once in a thousand times, by degrees of freedom (published tables).
CHI_SQUARED_001 = {1: 10.828, 2: 13.816, 3: 16.266, 4: 18.467}


@pytest.mark.parametrize("mixing", ["random", "alternating", "sequential"])
@pytest.mark.parametrize("seed", range(5))
def test_examples_come_in_the_shares_that_were_asked_for(mixing, seed):
    plan = mixed(mixing, seed, task_weights=WEIGHTS)
    drawn = Counter(str(TASK[i]) for own in epochs(plan, 0, 3).values() for i in own)
    observed = [drawn[task] for task in WEIGHTS]
    assert chi_squared(observed, [3 / 8, 2 / 8, 1 / 8, 2 / 8]) < CHI_SQUARED_001[3]


@pytest.mark.parametrize("seed", range(5))
def test_within_an_epoch_tasks_are_mixed_from_the_first_step_to_the_last(seed):
    plan = mixed("random", seed, task_weights=WEIGHTS)
    drawn = plan.mix.drawn(seed, 1)
    for quarter in np.array_split(drawn.examples[drawn.order], 4):
        tasks = Counter(TASK[quarter].tolist())
        assert chi_squared([tasks[task] for task in WEIGHTS], [3 / 8, 2 / 8, 1 / 8, 2 / 8]) < CHI_SQUARED_001[3]
    batches = [plan.epoch(1).batch(i) for i in range(len(plan.epoch(1)))]
    assert np.mean([len({TASK[i] for i in batch}) > 1 for batch in batches]) > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_length_takes_weights_as_shares_of_positions(seed):
    plan = mixed("length", seed, task_weights=WEIGHTS)
    own = [i for indices in epochs(plan, 0, 3).values() for i in indices]
    tokens = Counter()
    for i in own:
        tokens[str(TASK[i])] += int(POSITIONS[i])
    # Counted in mean examples, of which positions are a sum.
    observed = [tokens[task] / POSITIONS.mean() for task in WEIGHTS]
    assert chi_squared(observed, [3 / 8, 2 / 8, 1 / 8, 2 / 8]) < CHI_SQUARED_001[3]
    assert sum(tokens.values()) == pytest.approx(3 * POSITIONS.sum(), rel=0.02)


def test_length_matches_over_the_whole_epoch():
    frames = POSITIONS * 4

    def padding(mixing):
        mix = Mix.of(GROUPS, MEMBERS, POSITIONS, mixing=mixing)
        plan = BatchPlan(POSITIONS, frames, batch_size=8, window=40, mix=mix)
        batches = [plan.epoch(0).batch(i) for i in range(len(plan.epoch(0)))]
        return sum(frames[batch].sum() for batch in batches) / sum(frames[b].max() * len(b) for b in batches)

    assert padding("length") > 0.97 > padding("random") + 0.05


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_alternating_gives_a_step_of_all_ranks_to_one_task(weights):
    plan = mixed("alternating", task_weights=weights)
    tasks = []
    for step in range(2 * math.ceil(plan.epoch_steps())):
        ranks = [plan.rank(step, rank, 4) for rank in range(4)]
        found = {str(TASK[i]) for rank in ranks for batch in rank for i in batch.indices}
        assert len(found) == 1
        tasks += found
    # In rounds: between two steps of the rarest task the others come about as often as over the whole.
    for task in set(tasks):
        at = np.flatnonzero(np.array(tasks) == task)
        if len(at) > 3:
            assert np.diff(at).max() < 2.5 * len(tasks) / len(at)


def test_alternating_leaves_nothing_out():
    plan = mixed("alternating")
    seen = Counter(i for step in range(math.ceil(3 * plan.epoch_steps())) for batch in plan.step(step) for i in batch)
    assert set(seen) == set(range(len(MEMBERS)))
    assert max(seen.values()) <= 4


def test_sequential_takes_datasets_in_their_order():
    plan = mixed("sequential")
    order = [str(DATASET[i]) for i in plan.epoch(0).order]
    assert list(dict.fromkeys(order)) == ["big", "small", "tiny", "text"]
    assert order == sorted(order, key=["big", "small", "tiny", "text"].index)
    assert sorted(plan.epoch(0).order) == list(range(len(MEMBERS)))


def test_weights_need_not_sum_to_one_and_zero_leaves_out():
    one = mixed(task_weights={"asr": 3, "st": 1, "sqa": 0, "mt": 0})
    other = mixed(task_weights={"asr": 0.3, "st": 0.1, "sqa": 0, "mt": 0})
    assert one.step(3) == other.step(3)
    np.testing.assert_allclose(one.mix.asked.sum(), 1)
    assert {str(TASK[i]) for i in one.epoch(0).order} == {"asr", "st"}
    # Zero alone leaves out, and what is left is as it is.
    without = mixed(task_weights={"mt": 0})
    assert sorted(without.epoch(0).order) == np.flatnonzero(TASK != "mt").tolist()


def test_datasets_have_weights_of_their_own():
    groups = [Group(g.dataset, g.task, {"big": 1, "small": 1, "tiny": 0, "text": 2}[g.dataset]) for g in GROUPS]
    plan = mixed(groups=groups)
    drawn = Counter(str(DATASET[i]) for i in plan.epoch(0).order)
    total = sum(drawn.values())
    assert {name: round(4 * count / total, 2) for name, count in drawn.items()} == {"big": 1, "small": 1, "text": 2}
    # Within a dataset, tasks come as they are.
    big = Counter(str(TASK[i]) for i in plan.epoch(0).order if DATASET[i] == "big")
    assert big["asr"] / big["st"] == pytest.approx(2000 / 900, rel=0.02)
    # The run's weights hold in place of the entries' own; within a task, datasets share by theirs.
    plan = mixed(groups=groups, dataset_weights={"tiny": 1, "small": 3}, task_weights=WEIGHTS)
    drawn = Counter((str(DATASET[i]), str(TASK[i])) for i in plan.epoch(0).order)
    assert drawn["small", "st"] / drawn["big", "st"] == pytest.approx(3, rel=0.02)
    assert drawn["tiny", "sqa"] / sum(drawn.values()) == pytest.approx(1 / 8, rel=0.02)


def test_without_repeating_weights_only_thin_out():
    plan = mixed(task_weights=WEIGHTS, repeat=False)
    for own in epochs(plan, 0, 6).values():
        drawn = Counter(own)
        assert set(drawn.values()) == {1}
        tasks = Counter(str(TASK[i]) for i in own)
        assert tasks["sqa"] == 25  # all of the smallest, and the others in proportion
        assert all(abs(tasks[name] - 25 * weight) <= 1 for name, weight in WEIGHTS.items())


cases = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5)), min_size=1, max_size=5).filter(
    lambda groups: any(weight for _, weight in groups)
)


@settings(max_examples=120, deadline=None)
@given(
    cases,
    st.sampled_from(["random", "length", "alternating", "sequential"]),
    st.booleans(),
    st.integers(0, 2**40),
    st.integers(0, 12),
    st.integers(1, 4),
)
def test_each_example_comes_as_often_as_its_group_or_once_more(cases, mixing, repeat, seed, first, group):
    """Within an epoch, and over all epochs; and what is drawn of an epoch does not depend on those before."""
    groups = [Group(f"d{i}", f"t{i % 3}", float(weight)) for i, (_, weight) in enumerate(cases)]
    members = np.repeat(np.arange(len(cases)), [size for size, _ in cases])
    positions = 3 + np.arange(len(members)) % 7
    mix = Mix.of(groups, members, positions, mixing=mixing, repeat=repeat)
    drawn = mix.drawn(seed, first)
    own = Counter(drawn.examples.tolist())
    so_far = Counter(i for epoch in range(first + 1) for i in mix.drawn(seed, epoch).examples.tolist())
    assert sorted(drawn.order.tolist()) == list(range(len(drawn.examples)))
    assert set(own.values()) <= {1} or repeat
    for number, (_, weight) in enumerate(cases):
        mine = [int(i) for i in np.flatnonzero(members == number)]
        for counts, quota in ((own, mix.quotas[number]), (so_far, (first + 1) * mix.quotas[number])):
            times = [counts[i] for i in mine]
            assert max(times) - min(times) <= 1
            assert abs(sum(times) - quota) <= 1
            assert weight or not sum(times)
        for i in mine:
            rounds = drawn.rounds[drawn.examples == i]
            assert rounds.tolist() == list(range(so_far[i] - own[i], so_far[i]))
    plan = BatchPlan(
        positions, np.zeros(len(members)), batch_size=3, micro_batches_per_step=group, seed=seed, mix=mix, window=9
    )
    again = pickle.loads(pickle.dumps(plan))
    assert again.step(7) == plan.step(7)
    assert [again.rank(5, rank, group) for rank in range(group)] == [[plan.item(5, rank)] for rank in range(group)]


@pytest.mark.parametrize("mixing", ["random", "length", "alternating", "sequential"])
def test_any_step_is_reached_without_the_ones_before(mixing):
    walked, jumped = (mixed(mixing, task_weights=WEIGHTS) for _ in range(2))
    steps = [walked.step(step) for step in range(int(2.5 * walked.epoch_steps()))]
    assert jumped.step(len(steps) - 1) == steps[-1]
    assert jumped.step(len(steps) // 2) == steps[len(steps) // 2]


def test_repeats_lie_far_apart():
    weights = {"asr": 1, "st": 1, "sqa": 2, "mt": 1}
    drawn = mixed(task_weights=weights).mix.drawn(0, 0)
    order = drawn.examples[drawn.order]
    for example in np.flatnonzero(TASK == "sqa"):
        at = np.flatnonzero(order == example)
        assert len(at) > 50
        assert np.diff(at).min() > 0.7 * len(order) / len(at)
    # Even in steps of that task alone, a micro-batch seldom holds an example twice.
    plan = mixed("alternating", task_weights=weights, batch={"batch_size": 5})
    tiny = [batch for step in range(300) for batch in plan.step(step) if TASK[batch[0]] == "sqa"]
    assert len(tiny) > 200
    assert np.mean([len(set(batch)) == len(batch) for batch in tiny]) > 0.7


def test_the_first_speechlmms_sampler_would_fail_here():
    """Its random sampler drew indices below each task's share from all data: other tasks, and data never seen."""
    plan = mixed(task_weights=WEIGHTS)
    seen = {i for own in epochs(plan, 0, 8).values() for i in own}
    assert seen == set(range(len(MEMBERS)))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"task_weights": {"asrr": 1}}, ConfigError, r"there is no task 'asrr'; did you mean 'asr'\?"),
        ({"dataset_weights": {"bigg": 1}}, ConfigError, r"there is no dataset 'bigg'; did you mean 'big'\?"),
        (
            {"task_weights": {"asr": 1, "st": 2}},
            ConfigError,
            "task '(mt|sqa)' has no weight beside",
        ),
        ({"dataset_weights": {"big": 1}}, ConfigError, "dataset 'small' has no weight beside big 1"),
        ({"task_weights": dict.fromkeys(WEIGHTS, 0)}, ConfigError, "nothing would be trained on"),
    ],
)
def test_weights_that_mean_nothing(kwargs, error, message):
    with pytest.raises(error, match=message):
        mixed(**kwargs)


def test_a_weight_of_what_is_empty():
    groups = [*GROUPS, Group("gone", "vsr", 1)]
    with pytest.raises(ConfigError, match="has no weight beside"):
        Mix.of([Group("a", "asr", 1), Group("b", "asr")], [0, 1], [1, 1])
    with pytest.raises(DataError, match="dataset 'gone' has weight 1, but no example of it is left"):
        Mix.of(groups, MEMBERS, POSITIONS)
