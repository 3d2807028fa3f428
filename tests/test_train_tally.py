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


def figures(*added):
    """The figures of micro-batches, each of which has a loss, its shares, and the units of the three samples."""
    losses, total = Losses(["ctc"], ["asr", "st"]), sum(sum(units) for _, _, units in added)
    for value, shares, units in added:
        own = None if shares is None else torch.tensor(shares)
        batch = {
            ORIGIN: {"tasks": torch.from_numpy(TASKS), "host_tasks": TASKS},
            ITEMS: {UNIT: np.array(units)},
        }
        losses.add("ctc", Loss(torch.tensor(value), UNIT, own), torch.tensor(value / total), batch)
    cpu = torch.device("cpu")
    return losses.figures(read(losses.tensors(cpu), cpu), steps=1)


TOLD = (12.0, [2.0, 4.0, 6.0], [2, 5, 2])


@pytest.mark.parametrize("shares", [[0.0, 0.0, 0.0], None], ids=["told", "not told"])
def test_a_micro_batch_without_units_takes_nothing_away(shares):
    assert figures(TOLD, (0.0, shares, [0, 0, 0])) == figures(TOLD)
    assert figures(TOLD) == pytest.approx({"ctc": 12 / 9, "asr/ctc": 8 / 4, "st/ctc": 4 / 5})


def test_shares_that_are_not_known_leave_no_figure_by_task():
    found = figures(TOLD, (3.0, None, [1, 0, 0]))
    assert found == pytest.approx({"ctc": 15 / 10})
