"""The adapter contract: clean adapters pass, and each planted fault is caught by the check that is meant for it."""

from fractions import Fraction
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from speechlmm_core.features import Features, Loss
from speechlmm_core.interfaces.adapter import AdapterConfig
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.modules import Adapter, Objective
from speechlmm_core.interfaces.objective import ObjectiveConfig
from speechlmm_core.lengths import ceil_div
from speechlmm_core.testing import adapter_checks, adapter_contract


class StackAdapter(Adapter):
    """Joins each two frames, and projects them."""

    def __init__(self, config, ctx):
        super().__init__()
        self.config = config
        self.rate = ctx.frame_rate
        self.model = nn.Linear(2 * ctx.input_size, config.output_size(ctx))

    def forward(self, features, target_lengths=None):
        values = features.values.masked_fill(~features.mask()[..., None], 0.0)  # (B, T, D)
        values = nn.functional.pad(values, (0, 0, 0, values.shape[1] % 2))
        batch, frames, width = values.shape
        stacked = values.reshape(batch, frames // 2, 2 * width)  # (B, T / 2, 2 D)
        return Features(self.model(stacked), self.config.output_lengths(features.lengths, self.rate))


class StackAdapterConfig(AdapterConfig):
    type: Literal["test.stack"] = "test.stack"
    adapter: ClassVar[Any] = StackAdapter

    def output_lengths(self, num_frames, frame_rate):
        return ceil_div(num_frames, 2)

    def output_frame_rate(self, frame_rate):
        return frame_rate / 2

    def build(self, ctx):
        return type(self).adapter(self, ctx)


class LoudFrames(Adapter):
    """Keeps the frames whose first value is positive: the length depends on the content."""

    def __init__(self, config, ctx):
        super().__init__()
        self.config = config

    def forward(self, features, target_lengths=None):
        values = features.values.masked_fill(~features.mask()[..., None], 0.0)
        keep = values[..., 0] > 0  # (B, T)
        order = keep.int().argsort(dim=1, descending=True, stable=True)
        return Features(values.gather(1, order[..., None].expand_as(values)), keep.sum(1))


class LoudFramesConfig(StackAdapterConfig):
    adapter: ClassVar[Any] = LoudFrames

    def output_lengths(self, num_frames, frame_rate):
        return None

    def output_frame_rate(self, frame_rate):
        return frame_rate

    def output_size(self, ctx):
        return ctx.input_size


def planted(change=None, **changes: Any) -> AdapterConfig:
    """The clean adapter with one fault in its output, its module or (``config_``) its configuration."""
    config = {key.removeprefix("config_"): value for key, value in changes.items() if key.startswith("config_")}
    members = {key: value for key, value in changes.items() if not key.startswith("config_")}
    if change is not None:

        def forward(self, features, target_lengths=None):
            clean = StackAdapter.forward(self, features)
            return change(self, clean, features)

        members["forward"] = forward
    adapter = type("PlantedAdapter", (StackAdapter,), members)
    return type("PlantedConfig", (StackAdapterConfig,), {"__module__": __name__, "adapter": adapter, **config})()


def values(change):
    return lambda self, clean, features: Features(change(clean.values), clean.lengths)


def unmasked(self, features, target_lengths=None):
    full = torch.full_like(features.lengths, features.values.shape[1])
    clean = StackAdapter.forward(self, Features(features.values, full))
    return Features(clean.values, self.config.output_lengths(features.lengths, self.rate))


def mask_by_product(self, features, target_lengths=None):
    values = features.values * features.mask()[..., None]  # 0 times NaN is NaN
    full = torch.full_like(features.lengths, values.shape[1])
    clean = StackAdapter.forward(self, Features(values, full))
    return Features(clean.values, self.config.output_lengths(features.lengths, self.rate))


def grows(self, clean, features):
    return Features(clean.values, features.lengths)


def rounded_up(self, clean, features):
    return Features(clean.values, ceil_div(features.lengths, 2))


def only_features(self, features):
    return StackAdapter.forward(self, features)


def running(self, clean, features):
    with torch.no_grad():
        self.model.bias += 1
    return clean


FAULTS = {
    "mask ignored": (planted(forward=unmasked), "padding_content"),
    "not a number passes the mask": (planted(forward=mask_by_product), "padding_content"),
    "neighbours normalise each other": (planted(values(lambda v: v - v.mean(0, keepdim=True))), "padding_amount"),
    "mean over padding": (planted(values(lambda v: v - v.mean(1, keepdim=True))), "padding_amount"),
    "lengths not divided": (planted(grows), "declared_lengths"),
    "declared rounded down": (
        planted(rounded_up, config_output_lengths=lambda self, num_frames, frame_rate: num_frames // 2),
        "declared_lengths",
    ),
    "gradient detached": (planted(values(torch.Tensor.detach)), "gradients_reach_inputs"),
    "dropout when frozen": (planted(values(lambda v: nn.functional.dropout(v, 0.5))), "frozen"),
    "state moves": (planted(running), "deterministic"),
    "bfloat16 crashes": (planted(values(lambda v: v @ torch.eye(v.shape[-1]))), "bfloat16"),
    "order matters": (planted(values(lambda v: v + torch.arange(len(v))[:, None, None])), "batch_order"),
    "empty batch crashes": (planted(values(lambda v: v - 0 * v.detach().max())), "empty_batch"),
    "row of no frames crashes": (planted(values(lambda v: v - 0 * v[:, :1].max(1, keepdim=True)[0])), "one_frame"),
    "width is another": (planted(values(lambda v: v[..., :-1])), "output_form"),
    "rate does not follow": (planted(config_output_frame_rate=lambda self, rate: rate), "frame_rate"),
    "rate is a float": (planted(config_output_frame_rate=lambda self, rate: float(rate / 2)), "frame_rate"),
    "lengths are floats": (planted(config_output_lengths=lambda self, n, rate: n / 2), "lengths_of_all_kinds"),
    "bound too low": (
        type("Low", (LoudFramesConfig,), {"__module__": __name__, "max_output_lengths": lambda s, n, r: n // 9})(),
        "declared_lengths",
    ),
    "refuses target lengths": (
        planted(forward=only_features),
        "target_lengths",
    ),
}


class LengthLoss(Objective):
    """The distance of an adapter's weights from one, over the frames of the media, with a fault on demand."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, stages, batch, text_decoder):
        stage = self.config.stage
        if self.config.fault == "stages mixed up":
            hidden = stages["text_decoder"].values
            return Loss(hidden.float().square().sum(), "supervised_tokens")
        weights = stages[stage].extras["weights"]
        total = (weights - 1).square().sum() if self.config.fault != "not finite" else weights.sum() / 0
        total = total.detach() if self.config.fault == "detached" else total
        unit = "words" if self.config.fault == "not counted" else f"{stage.removesuffix('_adapter')}_frames"
        return Loss(total.float(), unit)


class LengthLossConfig(ObjectiveConfig):
    type: Literal["test.length"] = "test.length"
    stage: str = "audio_adapter"
    fault: str = ""

    @property
    def stages(self):
        return ("text_decoder",) if self.fault == "stages mixed up" else (self.stage,)

    def build(self, ctx):
        return LengthLoss(self)


class Firing(Adapter):
    """Keeps the first frames: as many as the transcript has tokens, else as many as are above a threshold."""

    def __init__(self, config, ctx):
        super().__init__()
        self.config = config
        self.model = nn.Linear(ctx.input_size, config.output_size(ctx))
        self.alpha = nn.Linear(ctx.input_size, 1)

    def forward(self, features, target_lengths=None):
        values = features.values.masked_fill(~features.mask()[..., None], 0.0)
        weights = torch.sigmoid(self.alpha(values))[..., 0] * features.mask()  # (B, T)
        counts = (weights > 0.5).sum(1)
        if (
            target_lengths is not None
            and self.config.fault != "targets missed"
            and (self.training or self.config.fault != "met in training")
        ):
            counts = torch.where(target_lengths >= 0, target_lengths.minimum(features.lengths), counts)
        if self.config.fault == "none in bfloat16" and values.dtype == torch.bfloat16:
            counts = counts * 0
        if self.config.fault == "rough in bfloat16" and values.dtype == torch.bfloat16:
            values = (values + 4).cumsum(1).diff(dim=1, prepend=torch.zeros_like(values[:, :1])) - 4
        if self.config.fault == "a frame more in bfloat16" and values.dtype == torch.bfloat16:
            counts = (counts + 1).minimum(features.lengths)
        return Features(self.model(values * weights[..., None]), counts, {"weights": weights})


class FiringConfig(StackAdapterConfig):
    type: Literal["test.firing"] = "test.firing"
    adapter: ClassVar[Any] = Firing
    fault: str = ""

    @property
    def meets_target_lengths(self):
        return True

    def output_lengths(self, num_frames, frame_rate):
        return None

    def output_frame_rate(self, frame_rate):
        return frame_rate / 2

    def objectives(self, stage):
        stage = "audio_adapter" if self.fault == "bound to audio" else stage
        return {"length": LengthLossConfig(stage=stage, fault=self.fault)}


class SilentConfig(FiringConfig):
    """Nothing ever comes out, as of an untrained adapter whose weights are too small."""

    type: Literal["test.silent"] = "test.silent"

    class Silent(Firing):
        def forward(self, features, target_lengths=None):
            fired = super().forward(features, target_lengths)
            values = fired.values[:, :0]
            return Features(values, torch.zeros_like(fired.lengths), fired.extras)

    adapter: ClassVar[Any] = Silent

    @property
    def meets_target_lengths(self):
        return False


IN_MODELS = {
    "its loss is not finite": (FiringConfig(fault="not finite"), "in_a_model"),
    "its loss is detached": (FiringConfig(fault="detached"), "in_a_model"),
    "its loss is not counted": (FiringConfig(fault="not counted"), "in_a_model"),
    "its loss is bound to one modality": (FiringConfig(fault="bound to audio"), "in_a_model.video"),
    "the transcript's length is missed": (FiringConfig(fault="targets missed"), "target_lengths"),
    "the rate of audio is assumed": (
        planted(
            __init__=lambda self, config, ctx: (
                StackAdapter.__init__(self, config, ctx) if ctx.frame_rate == 50 else 1 / 0
            )
        ),
        "output_form.video",
    ),
    "bfloat16 breaks it in a model": (
        planted(values(lambda v: v / (v.dtype == torch.float32))),
        "in_a_bfloat16_model",
    ),
    "the output is not learnt from": (planted(values(torch.zeros_like)), "in_a_model"),
    "its loss goes on without media": (FiringConfig(fault="stages mixed up"), "text_alone"),
    "its loss sees padding": (FiringConfig(fault="stages mixed up"), "packed_as_padded"),
    "frames are lost in bfloat16": (
        FiringConfig(fault="none in bfloat16"),
        "bfloat16",
    ),
    "bfloat16 sums up too much": (FiringConfig(fault="rough in bfloat16"), "bfloat16"),
    "bfloat16 moves a length that is told": (FiringConfig(fault="a frame more in bfloat16"), "built_in_bfloat16"),
    "the transcript's length is met in training only": (FiringConfig(fault="met in training"), "target_lengths"),
}


@pytest.mark.parametrize("check", adapter_checks(StackAdapterConfig()), ids=str)
def test_a_clean_adapter_passes(check):
    check()


def test_an_adapter_whose_length_depends_on_the_content_passes():
    adapter_contract(LoudFramesConfig(), skip=("config_import",))


@pytest.mark.parametrize(("config", "name"), FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_is_caught(config, name):
    (check,) = [check for check in adapter_checks(config) if check.name == name]
    with pytest.raises(AssertionError, match=f"adapter 'test.stack' fails '{name}'"):
        check()


@pytest.mark.parametrize("config", [FiringConfig(), SilentConfig()], ids=["fires", "never fires"])
def test_an_adapter_with_a_loss_of_its_own_passes(config):
    unreached = ("alpha.weight", "alpha.bias", "model.weight", "model.bias") if config.type == "test.silent" else ()
    adapter_contract(config, skip=("config_import",), unreached=unreached)


@pytest.mark.parametrize(("config", "name"), IN_MODELS.values(), ids=IN_MODELS.keys())
def test_a_fault_that_shows_in_a_model_is_caught(config, name):
    (check,) = [check for check in adapter_checks(config) if check.name == name]
    with pytest.raises(AssertionError, match=f"adapter '{config.type}' fails '{name}'"):
        check()


def test_the_context_can_be_given():
    ctx = BuildContext(input_size=5, output_size=7, frame_rate=Fraction(25), vocab_size=11)
    adapter_contract(StackAdapterConfig(), ctx=ctx, skip=("config_import",))
    wrong = planted(values(lambda v: v[..., :6]))
    (check,) = [one for one in adapter_checks(wrong, ctx=ctx) if one.name == "output_form"]
    with pytest.raises(AssertionError, match="width 6, expected 7"):
        check()
