"""Adapters in sequence: against the stages run by hand, and with losses of their own."""

from __future__ import annotations

from fractions import Fraction
from importlib.metadata import entry_points
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from speechlmm_adapters.cif.config import CIFAdapterConfig
from speechlmm_adapters.ctc.config import CTCAdapterConfig
from speechlmm_adapters.identity.config import IdentityAdapterConfig
from speechlmm_adapters.mlp.config import MLPAdapterConfig
from speechlmm_adapters.stack.config import StackAdapterConfig
from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import ConfigError
from speechlmm_core.features import Features, Loss, zero_padding
from speechlmm_core.interfaces.adapter import AdapterConfig, adapters
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.modules import Adapter, Objective
from speechlmm_core.interfaces.objective import ObjectiveConfig
from speechlmm_core.testing.composite import new_model, stand_in, tiny_model_config
from speechlmm_core.testing.toy import ToyEncoderConfig
from speechlmm_core.wiring import wire

CONTEXT = BuildContext(component="audio_adapter", input_size=6, output_size=5, frame_rate=Fraction(50), vocab_size=11)


class SumObjectiveConfig(ObjectiveConfig):
    """Sums an adapter's extra, scaled by a layer of the stage's width."""

    type: Literal["test.sum"] = "test.sum"
    stage: str = "audio_adapter"
    frames: int = 1

    @property
    def stages(self):
        return (self.stage,)

    @property
    def needs_transcript(self):
        return True

    def encode_transcript(self, transcript, tokenizer):
        return [len(transcript)]

    def min_frames(self, target):
        return self.frames

    def build(self, ctx):
        return SumObjective(self, ctx)


class SumObjective(Objective):
    def __init__(self, config, ctx):
        super().__init__()
        self.config = config
        self.head = nn.Linear(ctx.stage_sizes[config.stage], 1)

    def forward(self, stages, batch, text_decoder):
        features = stages[self.config.stage]
        return Loss(
            features.extras["marks"].float().sum() + 0 * self.head(features.values).sum(), f"{self.name}_targets"
        )


class HalvingConfig(AdapterConfig):
    """Keeps every second frame, and says that nobody knows how many that are."""

    type: Literal["test.halving"] = "test.halving"
    mark: int = 1
    meets: bool = False

    @property
    def meets_target_lengths(self):
        return self.meets

    def output_lengths(self, num_frames, frame_rate):
        return None

    def output_frame_rate(self, frame_rate):
        return frame_rate / 2

    def objectives(self, stage):
        return {"sum": SumObjectiveConfig(stage=stage, weight=0.25)}

    def objective_frames(self, name, num_frames, frame_rate):
        assert name == "sum"
        return num_frames * 10

    def build(self, ctx):
        return Halving(self, ctx)


class Halving(Adapter):
    def __init__(self, config, ctx):
        super().__init__()
        self.config, self.ctx = config, ctx
        self.linear = nn.Linear(ctx.input_size, ctx.output_size)
        self.seen = None

    def forward(self, features, target_lengths=None):
        self.seen = target_lengths
        values, lengths = self.linear(features.values[:, ::2]), -(-features.lengths // 2)
        marks = torch.full_like(features.lengths, self.config.mark)
        return Features(zero_padding(values, lengths), lengths, {"marks": marks})


@pytest.fixture(autouse=True)
def toys():
    with stand_in(adapters, HalvingConfig):
        yield


def mlp(**options):
    return {"type": "mlp", "hidden_size": 7, **options}


def stack(*stages, **options):
    return StackAdapterConfig.model_validate({"stages": list(stages), **options})


def features(*lengths: int, width: int = 6) -> Features:
    generator = torch.Generator().manual_seed(sum(lengths))
    values = torch.randn(len(lengths), max(lengths, default=0), width, generator=generator)
    return Features(values, torch.tensor(lengths, dtype=torch.long))


def test_equals_the_stages_run_by_hand():
    config = stack(mlp(stack=2), {"type": "test.halving"}, mlp(stack=3))
    adapter = config.build(CONTEXT).eval()
    given = features(13, 4, 0)
    expected = given
    for stage in adapter.stages:
        expected = stage(expected)
    out = adapter(given)
    torch.testing.assert_close(out.values, expected.values, rtol=0, atol=0)
    assert out.lengths.tolist() == [2, 1, 0]
    assert out.extras["test_halving.marks"].tolist() == [1, 1, 1]
    assert out.extras["mlp0.lengths"].tolist() == [7, 2, 0]


@settings(max_examples=30, deadline=None)
@given(length=st.integers(0, 500), stacks=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_lengths_are_chained(length, stacks):
    config = stack(*[mlp(stack=one) for one in stacks])
    expected, rate = length, Fraction(50)
    for one in stacks:
        expected, rate = -(-expected // one), rate / one
    assert config.output_lengths(length, Fraction(50)) == config.max_output_lengths(length, Fraction(50)) == expected
    assert config.output_frame_rate(Fraction(50)) == rate


def test_lengths_that_depend_on_the_content_stay_so():
    config = stack(mlp(stack=2), {"type": "test.halving"}, mlp(stack=3))
    assert config.output_lengths(100, Fraction(50)) is None
    assert config.max_output_lengths(100, Fraction(50)) == 17
    assert config.output_frame_rate(Fraction(50)) == Fraction(50, 12)


def test_widths_and_rates_are_wired():
    between = [(c.input_size, c.output_size) for c in stack(mlp(), mlp(), mlp(), hidden_size=9).contexts(CONTEXT)]
    assert between == [(6, 9), (9, 9), (9, 5)]
    contexts = stack({"type": "identity"}, mlp(stack=4), mlp()).contexts(CONTEXT)
    assert [(c.input_size, c.output_size) for c in contexts] == [(6, 6), (6, 6), (6, 5)]
    assert [c.frame_rate for c in contexts] == [50, 50, Fraction(25, 2)]
    assert [c.component for c in contexts] == [f"audio_adapter.stages.{number}" for number in range(3)]
    assert {c.vocab_size for c in contexts} == {11}
    assert stack(mlp(), {"type": "identity"}, hidden_size=9).output_size(CONTEXT) == 9
    assert stack({"type": "identity"}, mlp()).output_size(CONTEXT) == 5


def test_every_stage_is_told_the_target_lengths():
    adapter = stack({"type": "test.halving"}, {"type": "test.halving"}).build(CONTEXT)
    targets = torch.tensor([2, -1])
    adapter(features(8, 5), targets)
    assert all(stage.seen is targets for stage in adapter.stages)


def test_whether_target_lengths_are_met():
    cif = {"type": "test.halving", "meets": True}
    assert stack(mlp(stack=2), cif, mlp()).meets_target_lengths
    assert stack(cif, {"type": "stack", "stages": [mlp()]}).meets_target_lengths
    assert not stack(cif, mlp(stack=2)).meets_target_lengths
    assert not stack(cif, {"type": "test.halving"}).meets_target_lengths
    assert not stack(mlp()).meets_target_lengths


def test_names_of_losses_and_their_frames():
    one = stack(mlp(stack=2), {"type": "test.halving"})
    assert list(one.objectives("audio_adapter")) == ["test_halving_sum"]
    assert one.objective_frames("test_halving_sum", 101, Fraction(50)) == 510
    config = stack({"type": "test.halving"}, mlp(stack=2), {"type": "test.halving"})
    objectives = config.objectives("video_adapter")
    assert list(objectives) == ["test_halving0_sum", "test_halving2_sum"]
    assert config.objective_frames("test_halving0_sum", 101, Fraction(50)) == 1010
    assert config.objective_frames("test_halving2_sum", 101, Fraction(50)) == 510
    objective = objectives["test_halving2_sum"]
    assert (objective.weight, objective.stages, objective.needs_transcript) == (0.25, ("video_adapter",), True)
    assert (objective.encode_transcript("abc", None), objective.min_frames([1])) == ([3], 1)


def test_each_loss_reads_its_own_stage_in_a_model():
    inner = {"type": "stack", "hidden_size": 10, "stages": [{"type": "test.halving", "mark": 100}, mlp()]}
    outer = stack({"type": "test.halving", "mark": 1}, inner, {"type": "test.halving", "mark": 10_000}, hidden_size=12)
    with tiny_model_config({"audio_encoder": ToyEncoderConfig(width=8), "audio_adapter": outer}) as config:
        model = new_model(config)
    names = [
        "audio_adapter_test_halving0_sum",
        "audio_adapter_stack_test_halving_sum",
        "audio_adapter_test_halving2_sum",
    ]
    assert [name for name in model.objectives if name != "lm"] == names
    given = features(40, 16, width=8)
    stages = {"audio_encoder": given, "audio_adapter": model.adapter("audio")(given)}
    widths = []
    for name, expected in zip(names, (2, 200, 20_000), strict=True):
        loss = model.objective(name)(stages, {}, model.text_decoder)
        assert (loss.sum.item(), loss.unit) == (expected, f"{name}_targets")
        widths += [p.shape[1] for key, p in model.objective(name).named_parameters() if key.endswith("head.weight")]
    assert widths == [12, 10, model.text_decoder.config.hidden_size]


@pytest.mark.parametrize(
    ("adapter", "own"),
    [
        (CIFAdapterConfig(ctc_loss_weight=0.5), ["quantity", "ctc"]),
        (CTCAdapterConfig(vocabulary="characters", merge="softmax"), ["ctc"]),
        (CTCAdapterConfig(), ["ctc"]),
    ],
    ids=["cif", "ctc", "tokens"],
)
def test_a_stages_losses_and_gradients_are_those_of_the_adapter_alone(adapter, own):
    config = StackAdapterConfig(stages=[IdentityAdapterConfig(), adapter, MLPAdapterConfig(hidden_size=7)])
    torch.manual_seed(0)
    stacked = config.build(CONTEXT)
    alone = adapter.build(config.contexts(CONTEXT)[1])
    alone.load_state_dict(stacked.stages[1].state_dict())
    ids = torch.tensor([[3, 1, 3], [2, 0, 0]])
    targets = {"ids": ids, "lengths": torch.tensor([3, 1]), "valid": torch.tensor([True, True])}
    given, counts = features(40, 16), torch.tensor([3, 1])
    sizes = {"audio_encoder": 6, "audio_adapter": 5}
    keys = list(config.objectives("audio_adapter"))
    for name, key in zip(own, keys, strict=True):
        losses, grads = [], []
        for module, parts, key_there in ((alone, adapter, name), (stacked, config, key)):
            objective = parts.objectives("audio_adapter")[key_there]
            objective = objective.build(BuildContext(stage_sizes=sizes, vocab_size=11))
            objective.name = f"audio_adapter_{key_there}"
            module.zero_grad()
            stages = {"audio_encoder": given, "audio_adapter": module.train()(given, counts)}
            loss = objective(stages, {"targets": {objective.name: targets}}, None)
            loss.sum.backward()
            assert loss.unit.startswith(f"audio_adapter_{key_there}_")
            losses.append(loss.sum.detach())
            inner = stacked.stages[1] if module is stacked else alone
            grads.append({k: p.grad.clone() for k, p in inner.named_parameters() if p.grad is not None})
        torch.testing.assert_close(losses[0], losses[1])
        torch.testing.assert_close(grads[0], grads[1])
        assert losses[0] > 0
        assert any(bool(grad.any()) for grad in grads[0].values())
    assert config.objective_frames(keys[-1], 40, Fraction(50)) == adapter.objective_frames(own[-1], 40, Fraction(50))


def test_errors_keep_their_path():
    towers = {"audio_encoder": {"type": "speechlmm.toy"}, "text_decoder": {"type": "causal_lm"}}
    bad = {"type": "stack", "stages": [mlp(num_layers=0), {"type": "mpl"}]}
    with tiny_model_config({"audio_encoder": ToyEncoderConfig(), "audio_adapter": IdentityAdapterConfig()}):
        towers["audio_encoder"] = ToyEncoderConfig().model_dump()
        with pytest.raises(ValidationError) as caught:
            ModelConfig.model_validate({**towers, "audio_adapter": bad})
    found = {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors()}
    assert list(found) == ["audio_adapter.stages.0.num_layers", "audio_adapter.stages.1"]
    assert "did you mean 'mlp'" in found["audio_adapter.stages.1"]
    with pytest.raises(ValidationError, match="at least 1 item"):
        stack()


@pytest.mark.parametrize("name", sorted({entry.name for entry in entry_points(group="speechlmm.adapter")}))
def test_a_stage_behind_one_whose_frames_have_no_rate(name):
    """It works without a rate, or is refused before any data is read."""
    whole = {"type": "qformer", "window_seconds": None, "num_queries": 8}
    config = stack(whole, {"type": name}, mlp())
    towers = {"audio_encoder": ToyEncoderConfig(), "audio_adapter": config}
    with tiny_model_config(towers) as model:
        if name == "qformer":
            with pytest.raises(ConfigError, match=r"model\.audio_adapter \(stack\): `window_seconds: 0\.333` needs"):
                wire(model)
            return
        wire(model)
    assert config.max_output_lengths(50, Fraction(50)) <= 8
    adapter = config.build(CONTEXT).eval()
    assert int(adapter(features(50, 3)).lengths.max()) <= 8


def test_a_rate_that_bounds_frames_without_one():
    config = stack({"type": "qformer", "window_seconds": None}, {"type": "cif", "max_frame_rate": 12.5}, mlp())
    towers = {"audio_encoder": ToyEncoderConfig(), "audio_adapter": config}
    with (
        tiny_model_config(towers) as model,
        pytest.raises(ConfigError, match=r"model\.audio_adapter \(stack\): `max_frame_rate: 12\.5` needs frames that"),
    ):
        wire(model)


def test_a_stack_that_misses_the_decoders_width_is_refused():
    last = stack(mlp(), {"type": "identity"}, hidden_size=9)
    with (
        tiny_model_config({"audio_encoder": ToyEncoderConfig(), "audio_adapter": last}) as config,
        pytest.raises(ValueError, match="gives frames of width 9"),
    ):
        wire(config)


def test_default_is_one_mlp():
    assert StackAdapterConfig().stages == [MLPAdapterConfig()]
