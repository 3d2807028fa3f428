"""Losses by task between two log lines, added up from micro-batches of which some have nothing to learn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechlmm_core.features import Loss
from speechlmm_train.batching.loader import ORIGIN
from speechlmm_train.trainer.tally import ITEMS, Losses, read

TASKS = np.array([0, 1, 0])
UNIT = "ctc_targets"


def summed(*added, total=None):
    """The sums of a step's micro-batches, each of which has a loss, its shares, and the units of the three samples."""
    losses = Losses(["ctc"], ["asr", "st"])
    add_step(losses, *added, total=total)
    return losses


def add_step(losses, *added, total=None):
    total = sum(sum(units) for _, _, units in added) if total is None else total
    losses.begin_step({UNIT: total, "supervised_tokens": 7})
    for value, shares, units in added:
        own = None if shares is None else torch.tensor(shares)
        batch = {
            ORIGIN: {"tasks": torch.from_numpy(TASKS), "host_tasks": TASKS},
            ITEMS: {UNIT: np.array(units)},
        }
        losses.add("ctc", Loss(torch.tensor(value), UNIT, own), torch.tensor(value / max(total, 1)), batch)


def figures(*added):
    return figures_of(summed(*added))


def figures_of(*ranks, steps=1):
    """The figures of all ranks' sums."""
    cpu = torch.device("cpu")
    own = [read(losses.tensors(cpu), cpu) for losses in ranks]
    return ranks[0].figures([sum(column) for column in zip(*own, strict=True)], steps)


TOLD = (12.0, [2.0, 4.0, 6.0], [2, 5, 2])


@pytest.mark.parametrize("shares", [[0.0, 0.0, 0.0], None], ids=["told", "not told"])
def test_a_micro_batch_without_units_takes_nothing_away(shares):
    assert figures(TOLD, (0.0, shares, [0, 0, 0])) == figures(TOLD)
    assert figures(TOLD) == pytest.approx({"ctc": 12 / 9, "asr/ctc": 8 / 4, "st/ctc": 4 / 5})


def test_shares_that_are_not_known_leave_no_figure_by_task():
    found = figures(TOLD, (3.0, None, [1, 0, 0]))
    assert found == pytest.approx({"ctc": 15 / 10})


NOTHING = (0.0, [0.0, 0.0, 0.0], [0, 0, 0])


@pytest.mark.parametrize("second", [[], [NOTHING]], ids=["not computed", "without units"])
def test_steps_without_units_do_not_dilute_an_objective(second):
    losses = summed((6.0, [1.0, 3.0, 2.0], [1, 1, 1]))
    add_step(losses, *second)
    assert figures_of(losses, steps=2) == pytest.approx({"ctc": 2.0, "asr/ctc": 1.5, "st/ctc": 3.0})
    add_step(losses, (12.0, [0.0, 12.0, 0.0], [0, 3, 0]))
    assert figures_of(losses, steps=3)["ctc"] == pytest.approx((2 + 4) / 2)


def test_steps_count_once_for_all_ranks():
    """Two steps: the first with units on both ranks, the second on one alone, which the other hears of."""
    first, second = (
        summed((4.0, [1.0, 2.0, 1.0], [1, 1, 0]), total=4),
        summed((4.0, [1.0, 2.0, 1.0], [1, 1, 0]), total=4),
    )
    add_step(first, (9.0, [4.0, 5.0, 0.0], [1, 1, 1]), total=3)
    add_step(second, total=3)
    assert figures_of(first, second, steps=2)["ctc"] == pytest.approx((8 / 4 + 9 / 3) / 2)


def test_a_rank_that_never_meets_an_objective():
    own, other = summed((6.0, [1.0, 3.0, 2.0], [1, 1, 1])), summed(total=3)
    for losses in (own, other):
        add_step(losses, total=0)
    assert figures_of(own, other, steps=2)["ctc"] == pytest.approx(2.0)


def test_an_objective_without_units_has_no_figure():
    assert figures_of(summed(NOTHING), steps=1) == {}
