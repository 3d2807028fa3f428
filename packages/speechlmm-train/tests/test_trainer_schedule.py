"""The learning rate's cosine: against transformers' and against a formula written anew."""

import math

import pytest
import torch
from transformers.optimization import get_scheduler

from speechlmm_train.trainer.schedule import cosine_with_restarts, is_ours, schedule_arguments
from speechlmm_train.training_config import TrainingConfig


def rates(build, steps, peaks):
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": peak} for peak in peaks])
    optimizer.defaults["lr"] = peaks[0]
    scheduler = build(optimizer)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def ours(**fields):
    training = TrainingConfig(output_dir="out", **fields)
    return lambda optimizer: cosine_with_restarts(
        optimizer, schedule_arguments(training), warmup_steps=4, total_steps=30
    )


@pytest.mark.parametrize("lr_min", [0.0, 1e-4])
def test_without_restarts_it_is_transformers_cosine(lr_min):
    def reference(optimizer):
        kwargs = {"min_lr": lr_min}
        return get_scheduler("cosine_with_min_lr", optimizer, 4, 30, scheduler_specific_kwargs=kwargs)

    peaks = [1e-3, 2e-4]
    found = rates(ours(lr_min=lr_min, learning_rate=1e-3), 31, peaks)
    for got, expected in zip(found, rates(reference, 31, peaks), strict=True):
        assert got == pytest.approx(expected, rel=1e-12)
    assert found[30][0] == pytest.approx(lr_min)
    assert found[30][1] == pytest.approx(lr_min / 5)


def test_with_restarts_each_round_falls_from_the_peak_to_the_lowest():
    peak, lowest, period = 1e-3, 1e-4, 10
    found = rates(ours(learning_rate=peak, lr_min=lowest, num_steps_between_each_restart=period), 30, [peak])
    for step, (rate,) in enumerate(found):
        if step < 4:
            assert rate == pytest.approx(peak * step / 4)
        else:
            place = (step - 4) / period - math.floor((step - 4) / period)
            half_wave = math.sin(math.pi / 2 * (1 - place)) ** 2  # the same curve by another identity
            assert rate == pytest.approx(lowest + (peak - lowest) * half_wave, rel=1e-9)
    assert [step for step in range(30) if found[step][0] == pytest.approx(peak)] == [4, 14, 24]


def test_restarts_alone_fall_to_zero():
    found = rates(ours(learning_rate=1e-3, num_steps_between_each_restart=2), 8, [1e-3])
    assert [rate for (rate,) in found[4:]] == pytest.approx([1e-3, 5e-4, 1e-3, 5e-4])


def test_a_plain_schedule_is_left_to_transformers():
    assert schedule_arguments(TrainingConfig(output_dir="out")) == {}
    assert not is_ours(None)
    assert not is_ours({"num_cycles": 2})
