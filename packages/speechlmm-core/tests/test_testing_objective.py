"""The objective contract: clean objectives pass, and each planted fault is caught by the check that is meant for it."""

from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from speechlmm_core.features import Loss
from speechlmm_core.interfaces.modules import Objective
from speechlmm_core.interfaces.objective import ObjectiveConfig
from speechlmm_core.testing import objective_checks, objective_contract


class CountObjective(Objective):
    """Squared distance between each medium's summed frames and its number of target ids."""

    def __init__(self, config, ctx):
        super().__init__()
        self.config = config
        self.head = nn.Linear(ctx.stage_sizes["audio_encoder"], 1, bias=False)

    def per_medium(self, stages, batch):
        features, targets = stages["audio_encoder"], batch["targets"][self.name]
        values = features.values.masked_fill(~features.mask()[..., None], 0.0)  # (B, T, D)
        scores = self.head(values).float().sum((1, 2)) / 10  # (B,)
        return torch.where(targets["valid"], (scores - targets["lengths"]) ** 2, 0.0)  # (B,)

    def forward(self, stages, batch, text_decoder):
        return Loss(self.per_medium(stages, batch).sum(), f"{self.name}_targets")


class CountObjectiveConfig(ObjectiveConfig):
    type: Literal["test.count"] = "test.count"
    objective: ClassVar[Any] = CountObjective

    @property
    def stages(self):
        return ("audio_encoder",)

    @property
    def needs_transcript(self):
        return True

    def encode_transcript(self, transcript, tokenizer):
        return tokenizer.encode(transcript)

    def min_frames(self, target):
        return len(target)

    def build(self, ctx):
        return type(self).objective(self, ctx)


def planted(forward=None, **changes: Any) -> ObjectiveConfig:
    """The clean objective with one fault in its module or (``config_``) its configuration."""
    config = {key.removeprefix("config_"): value for key, value in changes.items() if key.startswith("config_")}
    members = {key: value for key, value in changes.items() if not key.startswith("config_")}
    if forward is not None:
        members["forward"] = forward
    objective = type("PlantedObjective", (CountObjective,), members)
    return type("PlantedConfig", (CountObjectiveConfig,), {"__module__": __name__, "objective": objective, **config})()


def changed(change):
    def forward(self, stages, batch, text_decoder):
        clean = CountObjective.forward(self, stages, batch, text_decoder)
        return Loss(change(self, clean.sum, stages, batch), clean.unit)

    return forward


def unit(name):
    return lambda self, stages, batch, text_decoder: Loss(self.per_medium(stages, batch).sum(), name)


def mean(self, total, stages, batch):
    return total / max(len(batch["targets"][self.name]["valid"]), 1)


def ignores_valid(self, stages, batch, text_decoder):
    valid = torch.ones_like(batch["targets"][self.name]["valid"])
    targets = {self.name: {**batch["targets"][self.name], "valid": valid}}
    return CountObjective.forward(self, stages, {**batch, "targets": targets}, text_decoder)


def ignores_lengths(self, stages, batch, text_decoder):
    features = stages["audio_encoder"]
    scores = self.head(features.values).float().sum((1, 2)) / 10
    targets = batch["targets"][self.name]
    return Loss(torch.where(targets["valid"], (scores - targets["lengths"]) ** 2, 0.0).sum(), f"{self.name}_targets")


def weighted_by_place(self, stages, batch, text_decoder):
    losses = self.per_medium(stages, batch)
    return Loss((losses * torch.arange(1, len(losses) + 1)).sum(), f"{self.name}_targets")


def reads_padded_ids(self, total, stages, batch):
    return total + batch["targets"][self.name]["ids"].sum()


def crashes_on_nothing(self, total, stages, batch):
    return total + 0 * batch["targets"][self.name]["ids"].max()


def constant_for_nothing(self, total, stages, batch):
    return total if batch["targets"][self.name]["valid"].any() else torch.zeros(())


def fp32_only(self, total, stages, batch):
    return total + 0 * (stages["audio_encoder"].values @ torch.ones(12)).sum()


def drawn(self, config, ctx):
    CountObjective.__init__(self, config, ctx)
    self.factor = torch.rand(())


def needs_weight(self, config, ctx):
    CountObjective.__init__(self, config, ctx)
    self.scale = 1 / config.weight


FAULTS = {
    "mean instead of sum": (planted(changed(mean)), "sum_over_units"),
    "not a scalar": (planted(changed(lambda s, total, st, b: total[None])), "loss_form"),
    "not a Loss": (planted(lambda self, st, b, d: self.per_medium(st, b).sum()), "loss_form"),
    "unit unknown": (planted(unit("frames")), "unit_is_counted"),
    "unit that counts nothing": (planted(unit("tested_infeasible")), "unit_is_counted"),
    "invalid media counted": (planted(ignores_valid), "invalid_media_left_out"),
    "any length is feasible": (planted(config_min_frames=lambda self, target: 0), "invalid_media_left_out"),
    "padding counted": (planted(ignores_lengths), "padding_content"),
    "padded ids counted": (planted(changed(reads_padded_ids)), "padding_content"),
    "order matters": (planted(weighted_by_place), "batch_order"),
    "gradient detached": (planted(changed(lambda s, total, st, b: total.detach())), "loss_form"),
    "stage not read": (
        planted(config_stages=property(lambda self: ("audio_encoder", "audio_adapter"))),
        "gradients_reach_stages",
    ),
    "crashes without targets": (planted(changed(crashes_on_nothing)), "empty_targets"),
    "detached without targets": (planted(changed(constant_for_nothing)), "empty_targets"),
    "bfloat16 crashes": (planted(changed(fp32_only)), "bfloat16"),
    "sum in bfloat16": (planted(changed(lambda s, total, st, b: total.to(s.head.weight.dtype))), "bfloat16"),
    "shortest medium": (
        planted(changed(lambda s, t, st, b: t / (st["audio_encoder"].values.shape[1] > 1))),
        "shortest_media",
    ),
    "weight zero refused": (
        planted(__init__=needs_weight),
        "weights",
    ),
    "value outside the state": (
        planted(changed(lambda s, total, st, b: total * s.factor), __init__=drawn),
        "state_dict_round_trip",
    ),
}


@pytest.mark.parametrize("check", objective_checks(CountObjectiveConfig()), ids=str)
def test_a_clean_objective_passes(check):
    check()


@pytest.mark.parametrize(("config", "name"), FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_is_caught(config, name):
    (check,) = [check for check in objective_checks(config) if check.name == name]
    with pytest.raises(AssertionError, match=f"objective 'test.count' fails '{name}'"):
        check()


def test_the_contract_names_what_fails():
    with pytest.raises(AssertionError, match="unit 'frames', counted are supervised_tokens, <objective>_targets"):
        objective_contract(planted(unit("frames")))
