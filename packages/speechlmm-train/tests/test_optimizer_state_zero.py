"""What DeepSpeed's optimisers take over from a checkpoint, shown on objects that have what ours reads of theirs."""

from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.fp16 import loss_scaler
from torch import nn

from speechlmm_train.optimizer_state.folder import read_optimizer, states_of, write_optimizer
from speechlmm_train.optimizer_state.loss_scale import ZeroScale, loss_scale_of, take_up_scale

GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))


def stage_2(model, device, **settings):
    """As DeepSpeed's stages 1 and 2 hold a model: one flat tensor, and at each parameter its place in it."""
    parameters = list(model.parameters())
    flat = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]).to(device))
    begin = 0
    for parameter in parameters:
        here = SimpleNamespace(start=0, numel=parameter.numel())
        there = SimpleNamespace(start=begin, numel=parameter.numel())
        parameter._hp_mapping = SimpleNamespace(lp_fragment_address=here, hp_fragment_address=there)
        begin += parameter.numel()
    inner = torch.optim.AdamW([flat], lr=0.1)
    inner.param_groups[0].update(settings)  # AdamW itself takes `fused` for the devices that have it
    return SimpleNamespace(optimizer=inner, single_partition_of_fp32_groups=[flat], bit16_groups=[parameters])


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of one process, after two steps, with the model and its optimiser."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        walk(model, optimizer)
    assert write_optimizer(tmp_path, states_of(optimizer, model)) is None
    return tmp_path, model, optimizer


def walk(model, optimizer):
    optimizer.zero_grad()
    (model(torch.ones(2, 5)) ** 2).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("device", ["cpu", "meta", GPU])
@pytest.mark.parametrize("settings", [{}, {"fused": True}, {"capturable": True}])
def test_steps_are_counted_where_torch_counts_them(saved, device, settings):
    folder, model, optimizer = saved
    zero = stage_2(model, device, **settings)
    read_optimizer(folder, states_of(zero, model))
    (flat,) = zero.single_partition_of_fp32_groups
    found = zero.optimizer.state[flat]["step"]
    expected = torch.optim.AdamW([nn.Parameter(torch.zeros(35, device=device))], lr=0.1)
    expected.param_groups[0].update(settings)
    state = {"step": torch.tensor(2.0), "exp_avg": torch.zeros(35), "exp_avg_sq": torch.zeros(35)}
    expected.load_state_dict({**expected.state_dict(), "state": {0: state}})
    (theirs,) = expected.state.values()
    assert (found.device, found.dtype, found.shape) == (theirs["step"].device, theirs["step"].dtype, torch.Size([]))
    if device != "meta":
        assert found.item() == 2
    moments = torch.cat([optimizer.state[parameter]["exp_avg"].flatten() for parameter in model.parameters()])
    assert device == "meta" or torch.equal(zero.optimizer.state[flat]["exp_avg"].cpu(), moments)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_fused_optimiser_goes_on(saved, device):
    """The default of transformers."""
    folder, model, optimizer = saved
    zero = stage_2(model, device, fused=True)
    read_optimizer(folder, states_of(zero, model))
    (flat,) = zero.single_partition_of_fp32_groups
    walk(model, optimizer)
    flat.grad = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).to(device)
    zero.optimizer.step()
    whole = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    torch.testing.assert_close(flat.detach().cpu(), whole, rtol=1e-6, atol=1e-7)


def test_an_optimiser_that_is_not_torchs_counts_in_whole_numbers(saved):
    folder, model, _ = saved

    class AdamW(torch.optim.AdamW):
        """Another one of that name."""

    zero = stage_2(model, "cpu")
    zero.optimizer = AdamW(zero.single_partition_of_fp32_groups)
    read_optimizer(folder, states_of(zero, model))
    (state,) = zero.optimizer.state.values()
    assert isinstance(state["step"], int)


@pytest.fixture
def zero_scale(monkeypatch):
    """Makes DeepSpeed's loss scale, which asks which process it is before it says that there was an overflow."""
    monkeypatch.setattr(loss_scaler.dist, "get_rank", lambda: 1)
    return zero_scale_of_10


def zero_scale_of_10():
    settings = {"min_scale": 1, "delayed_shift": 1, "consecutive_hysteresis": False}
    return loss_scaler.DynamicLossScaler(init_scale=2**16, scale_window=10, **settings)


def torch_scale():
    scaler = torch.amp.GradScaler("cpu", growth_interval=10)
    scaler.scale(torch.zeros(1))  # from then on, its numbers are tensors
    return scaler


def torch_step(scaler, *, overflows):
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([float("inf") if overflows else 1.0])
    scaler.step(torch.optim.SGD([parameter], lr=0.0))
    scaler.update()


def steps_until_it_grows(scale, step):
    before, count = scale(), 0
    while scale() == before and count < 50:
        step()
        count += 1
    assert scale() == 2 * before
    return count


@pytest.mark.parametrize("number", [1, 4, 23])
def test_a_run_of_one_process_takes_up_deepspeeds_loss_scale(saved, zero_scale, number):
    folder, model, optimizer = saved
    theirs, ours = zero_scale(), torch_scale()
    theirs.update_scale(True)
    for _ in range(number):
        theirs.update_scale(False)
    zero = SimpleNamespace(single_partition_of_fp32_groups=[], loss_scaler=theirs, dynamic_loss_scale=True)
    scale = loss_scale_of(SimpleNamespace(optimizer=zero))
    assert scale is not None
    (folder / "later").mkdir()
    write_optimizer(folder / "later", states_of(optimizer, model), scaler=scale.state_dict())
    read_optimizer(folder / "later", states_of(optimizer, model), scaler=ours)
    assert ours.get_scale() == theirs.cur_scale == 2.0 ** (15 + number // 11)  # DeepSpeed grows a step later
    left = steps_until_it_grows(ours.get_scale, lambda: torch_step(ours, overflows=False))
    assert left == 10 - number % 10


@pytest.mark.parametrize("number", [0, 4, 9])
def test_deepspeed_takes_up_the_loss_scale_of_one_process(saved, zero_scale, number):
    folder, model, optimizer = saved
    ours, theirs = torch_scale(), zero_scale()
    theirs.update_scale(True)
    torch_step(ours, overflows=True)
    torch_step(ours, overflows=True)
    for _ in range(number):
        torch_step(ours, overflows=False)
    (folder / "later").mkdir()
    write_optimizer(folder / "later", states_of(optimizer, model), scaler=ours.state_dict())
    read_optimizer(folder / "later", states_of(optimizer, model), scaler=ZeroScale(theirs))
    assert theirs.cur_scale == ours.get_scale() == 2.0**14
    assert steps_until_it_grows(lambda: theirs.cur_scale, lambda: theirs.update_scale(False)) == 10 - number + 1


def test_each_takes_up_its_own_loss_scale_as_it_was(zero_scale):
    theirs, anew = zero_scale(), zero_scale()
    for overflows in (True, False, True, False, False):
        theirs.update_scale(overflows)
    take_up_scale(ZeroScale(anew), ZeroScale(theirs).state_dict())
    assert vars(anew) == vars(theirs)
    ours, again = torch_scale(), torch_scale()
    torch_step(ours, overflows=False)
    take_up_scale(again, ours.state_dict())
    assert again.state_dict() == ours.state_dict()
    take_up_scale(torch.amp.GradScaler("cpu", enabled=False), ZeroScale(theirs).state_dict())
