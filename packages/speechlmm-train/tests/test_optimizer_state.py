"""An optimiser's state on the disk: what goes on from it is what would have gone on anyway."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments
from transformers.optimization import Adafactor
from transformers.training_args import OptimizerNames

from speechlmm_core.checkpoint import shards
from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_train.optimizer_state.folder import read_optimizer, states_of, write_optimizer
from speechlmm_train.optimizer_state.kinds import DEFAULT, check_optimizer, check_spread, class_of

KINDS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9), amsgrad=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "plain_sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.1),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, centered=True),
    "nadam": lambda groups: torch.optim.NAdam(groups, lr=0.1),
    "adafactor": lambda groups: Adafactor(groups, lr=0.1, relative_step=False, scale_parameter=False, beta1=0.5),
}


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    model[2].requires_grad_(False)
    return model


def trained(kind, *, lr=None):
    model = network()
    decay = [model[0].weight, model[1].weight]
    rest = [model[1].bias, model[0].bias]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = KINDS[kind](groups)
    for group in optimizer.param_groups:
        group["lr"] = lr or group["lr"]
    schedule = LambdaLR(optimizer, lambda step: math.exp(-step / 3))
    return model, optimizer, schedule


def walk(model, optimizer, schedule, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        loss = (model(torch.randn(6, 5, generator=generator)) ** 2).sum()
        if step == 1:
            model[1].bias.grad = None  # a parameter that a step does not reach
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def copy(model, other):
    other.load_state_dict(model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_as_if_nothing_had_happened(tmp_path, kind):
    whole, *others = trained(kind)
    walk(whole, *others, 0, 3)
    optimizer, schedule = others
    assert write_optimizer(tmp_path, states_of(optimizer, whole), scheduler=schedule) is None
    model, anew, schedule_anew = trained(kind)
    copy(whole, model)
    assert read_optimizer(tmp_path, states_of(anew, model), scheduler=schedule_anew) == []
    walk(whole, *others, 3, 6)
    walk(model, anew, schedule_anew, 3, 6)
    for (name, value), other in zip(whole.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(value, other), name
    assert schedule_anew.get_last_lr() == schedule.get_last_lr()


def test_the_files_say_which_parameter_a_tensor_belongs_to(tmp_path):
    model, optimizer, schedule = trained("adamw")
    walk(model, optimizer, schedule, 0, 2)
    write_optimizer(tmp_path, states_of(optimizer, model), scheduler=schedule, scaler={"scale": 4.0})
    assert {path.suffix for path in (tmp_path / "optimizer").iterdir()} == {".json", ".safetensors"}
    tensors = load_file(tmp_path / "optimizer" / "state.safetensors")
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            if parameter.requires_grad:
                assert torch.equal(tensors.pop(f"{name}/{key}"), optimizer.state[parameter][key])
    assert not tensors
    content = json.loads((tmp_path / "optimizer" / "state.json").read_text())
    assert content["numbers"] == {f"{i}.{part}": {"step": 2.0} for i in (0, 1) for part in ("weight", "bias")}
    assert [group["params"] for group in content["groups"]] == [["0.weight", "1.weight"], ["1.bias", "0.bias"]]
    assert content["scheduler"]["last_epoch"] == 2
    assert content["scaler"] == {"scale": 4.0}


def test_settings_that_were_changed_hold_and_are_told(tmp_path):
    model, optimizer, schedule = trained("sgd", lr=0.2)
    walk(model, optimizer, schedule, 0, 2)
    write_optimizer(tmp_path, states_of(optimizer, model), scheduler=schedule)
    other, anew, schedule_anew = trained("sgd", lr=0.1)
    anew.param_groups[1]["weight_decay"] = 0.5
    told = read_optimizer(tmp_path, states_of(anew, other), scheduler=schedule_anew)
    assert told == ["learning rate 0.2 → 0.1", "weight decay 0 → 0.5"]
    assert anew.param_groups[0]["lr"] == pytest.approx(0.1 * math.exp(-2 / 3))
    walk(other, anew, schedule_anew, 2, 3)
    assert anew.param_groups[1]["lr"] == pytest.approx(0.1 * math.exp(-3 / 3))
    assert anew.param_groups[1]["weight_decay"] == 0.5


def test_groups_may_be_others(tmp_path):
    model, optimizer, schedule = trained("adamw")
    walk(model, optimizer, schedule, 0, 2)
    write_optimizer(tmp_path, states_of(optimizer, model), scheduler=schedule)
    other = network()
    one = torch.optim.AdamW([parameter for parameter in other.parameters() if parameter.requires_grad], amsgrad=True)
    read_optimizer(tmp_path, states_of(one, other))
    for name, parameter in other.named_parameters():
        if parameter.requires_grad:
            before = optimizer.state[dict(model.named_parameters())[name]]
            assert torch.equal(one.state[parameter]["exp_avg"], before["exp_avg"])
            assert one.state[parameter]["step"] == 2


def test_what_cannot_be_taken_over_is_said(tmp_path):
    model, optimizer, schedule = trained("adamw")
    write_optimizer(tmp_path, states_of(optimizer, model))  # before the first step there is nothing yet
    with pytest.raises(CheckpointError, match="holds the state of AdamW, and this run trains with SGD"):
        read_optimizer(tmp_path, states_of(torch.optim.SGD(model.parameters(), lr=1), model))
    (tmp_path / "optimizer" / "state.json").write_text('{"format": 1')
    with pytest.raises(CheckpointError, match=r"optimizer' cannot be read"):
        read_optimizer(tmp_path, states_of(optimizer, model), scheduler=schedule)
    with pytest.raises(CheckpointError, match="1 of the 1 tensors that SGD trains are no parameters of the model"):
        states_of(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1), model)


def test_a_full_disk_is_told_after_all_tensors_were_gathered(tmp_path, monkeypatch):
    model, optimizer, schedule = trained("adamw")
    walk(model, optimizer, schedule, 0, 1)
    gathered = []
    from speechlmm_train.optimizer_state import folder

    monkeypatch.setattr(folder, "gather", lambda tensor: gathered.append(tensor) or tensor)
    monkeypatch.setattr(folder, "ShardWriter", lambda *args: shards.ShardWriter(*args, max_shard_size=1))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "save_file", full)
    fault = write_optimizer(tmp_path, states_of(optimizer, model))
    assert isinstance(fault, OSError)
    assert len(gathered) == 12
    assert write_optimizer(None, states_of(optimizer, model)) is None  # a process that only takes part
    assert len(gathered) == 24
    assert isinstance(write_optimizer(tmp_path / "nowhere", states_of(optimizer, model)), OSError)
    assert len(gathered) == 36


@pytest.mark.parametrize(
    ("optim", "mode", "message"),
    [
        ("galore_adamw", "none", "keeps what cannot be saved"),
        ("adafactor", "zero", "of other shapes than the parameters'"),
        ("paged_adamw_8bit", "fsdp2", "of other shapes than the parameters'"),
    ],
)
def test_states_that_cannot_be_saved_are_refused_before_training(optim, mode, message):
    with pytest.raises(ConfigError, match=message):
        check_optimizer(optim, mode, saves=True)
    check_optimizer(optim, mode, saves=False)
    check_optimizer("adamw_torch", mode, saves=True)
    check_optimizer("adafactor", "ddp", saves=True)


@pytest.mark.filterwarnings("ignore")
def test_the_class_of_an_optimiser_is_known_without_making_it(tmp_path):
    """A run is told by it that a checkpoint is another optimiser's, before anything is written."""
    seen = set()
    for name in OptimizerNames:
        try:
            check_optimizer(name.value, "none", saves=True)
        except ConfigError:
            continue
        assert class_of(name.value) is not None
        args = TrainingArguments(output_dir=str(tmp_path), optim=name.value, report_to=[], use_cpu=True)
        try:
            cls, _ = Trainer.get_optimizer_cls_and_kwargs(args)
        except (ImportError, ValueError):  # of a library that is not installed
            continue
        seen.add(cls.__name__)
        assert class_of(name.value) == cls.__name__, name
    assert {"AdamW", "Adafactor", "SGD", "Adagrad", "RMSprop"} <= seen
    given = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    assert class_of(DEFAULT) == Trainer.get_optimizer_cls_and_kwargs(given)[0].__name__
    assert class_of("sdg") is None


def test_states_that_zero_cannot_spread_are_refused_by_their_name(tmp_path):
    check_spread(tmp_path, "adafactor", "ddp")
    check_spread(tmp_path, "adamw_torch", "zero")
    with pytest.raises(CheckpointError, match=r"other shapes than the parameters' \(adafactor\), which ZeRO cannot"):
        check_spread(tmp_path, "adafactor", "zero")
