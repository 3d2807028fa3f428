"""The encoder contract: a clean encoder passes, and each planted fault is caught by the check that is meant for it."""

from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field
from torch import nn

from speechlmm_core.features import Features, length_mask
from speechlmm_core.interfaces.encoder import EncoderConfig
from speechlmm_core.interfaces.modules import Encoder, Preprocessor
from speechlmm_core.testing import encoder_checks, encoder_contract

HOP, WIDTH = 160, 8


class FramePreprocessor(Preprocessor):
    def __call__(self, media):
        lengths = torch.tensor([one.num_samples for one in media], dtype=torch.int64)
        values = torch.zeros(len(media), int(lengths.max()) if len(media) else 0)
        for row, one in enumerate(media):
            values[row, : one.num_samples] = one.values
        return {"input_values": values, "lengths": lengths}


class FrameEncoder(Encoder):
    """Frames of 10 ms, windowed, projected, mixed with their neighbours, normalised."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = nn.Sequential(nn.Linear(HOP, WIDTH), nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm1d(WIDTH))
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("window", torch.empty(HOP), persistent=False)
        self.register_buffer("calls", torch.zeros(()))
        FrameEncoder.reset_buffers(self)

    def reset_buffers(self):
        self.window.copy_(torch.hann_window(HOP))

    def encode(self, inputs):
        values, lengths = inputs["input_values"], inputs["lengths"]
        values = values.masked_fill(~length_mask(lengths, values.shape[1]), 0.0)
        lengths = self.config.output_lengths(lengths)
        num_frames = values.shape[1] // HOP
        frames = values[:, : num_frames * HOP].reshape(len(values), num_frames, HOP) * self.window.to(values.dtype)
        hidden = self.model[0](frames) * length_mask(lengths, num_frames)[..., None]
        if num_frames and len(values):
            hidden = self.model[2](self.model[1](hidden.transpose(1, 2))).transpose(1, 2)
        return Features(self.dropout(hidden), lengths)


class FrameEncoderConfig(EncoderConfig):
    type: Literal["test.frames"] = "test.frames"
    encoder: ClassVar[Any] = FrameEncoder
    preprocessor: ClassVar[Any] = FramePreprocessor

    @property
    def sampling_rate(self):
        return 16_000

    @property
    def hidden_size(self):
        return WIDTH

    @property
    def frame_rate(self):
        return Fraction(100)

    def output_lengths(self, num_samples):
        return num_samples // HOP

    def build_preprocessor(self):
        return type(self).preprocessor()

    def build(self, ctx):
        return type(self).encoder(self)


def planted(encode=None, **changes: Any) -> EncoderConfig:
    """The clean encoder with one fault: another ``encode``, other members of the module or (``config_``) the config."""
    config = {key.removeprefix("config_"): value for key, value in changes.items() if key.startswith("config_")}
    members = {key: value for key, value in changes.items() if not key.startswith("config_")}
    if encode is not None:
        members["encode"] = encode
    encoder = type("PlantedEncoder", (FrameEncoder,), members)
    return type("PlantedConfig", (FrameEncoderConfig,), {"__module__": __name__, "encoder": encoder, **config})()


def after(change):
    """An ``encode`` that changes the clean features' values."""

    def encode(self, inputs):
        clean = FrameEncoder.encode(self, inputs)
        return Features(change(self, clean.values, inputs), clean.lengths)

    return encode


def mean_over_padding(self, inputs):
    values = inputs["input_values"]
    centred = values - values.mean(1, keepdim=True) if values.numel() else values
    return FrameEncoder.encode(self, {**inputs, "input_values": centred})


def no_mask(self, inputs):
    full = torch.full_like(inputs["lengths"], inputs["input_values"].shape[1])
    clean = FrameEncoder.encode(self, {**inputs, "lengths": full})
    return Features(clean.values, self.config.output_lengths(inputs["lengths"]))


def one_frame_more(self, inputs):
    clean = FrameEncoder.encode(self, inputs)
    return Features(clean.values, (clean.lengths + 1).clamp(max=clean.values.shape[1]))


def drifting(self, values, inputs):
    self.calls += 1
    return values


def with_extra(name, make):
    def init(self, config):
        FrameEncoder.__init__(self, config)
        setattr(self, name, make())

    return init


def with_drawn_buffer(self, config):
    FrameEncoder.__init__(self, config)
    self.register_buffer("offset", torch.randn(WIDTH), persistent=False)


def stays_training(self, mode=True):
    FrameEncoder.train(self, mode)
    self.model[2].train()
    return self


class LambdaPreprocessor(FramePreprocessor):
    def __init__(self):
        self.scale = lambda value: value


class Int32Preprocessor(FramePreprocessor):
    def __call__(self, media):
        inputs = super().__call__(media)
        return {**inputs, "lengths": inputs["lengths"].int()}


def loses_a_field():
    members = {
        "__module__": __name__,
        "__annotations__": {"size": Annotated[int, Field(exclude=True)]},
        "size": 3,
    }
    return type("LosingConfig", (FrameEncoderConfig,), members)(size=4)


def needs_an_argument():
    members = {"__module__": __name__, "__annotations__": {"size": int}}
    return type("NeedyConfig", (FrameEncoderConfig,), members)(size=4)


def noisy(self, values, inputs):
    return nn.functional.dropout(values, 0.5, training=True)


FAULTS = {
    "mean over padding": (planted(mean_over_padding), "padding_amount"),
    "mask ignored": (planted(no_mask), "padding_content"),
    "neighbours normalise each other": (planted(after(lambda s, v, i: v - v.mean(0, keepdim=True))), "padding_amount"),
    "length off by one": (planted(one_frame_more), "declared_lengths"),
    "gradient detached": (planted(after(lambda s, v, i: v.detach())), "gradients_reach_inputs"),
    "gradient detached from parameters": (planted(after(lambda s, v, i: v.detach())), "gradients_reach_parameters"),
    "dropout when frozen": (planted(after(noisy)), "frozen"),
    "output drawn anew": (planted(after(noisy)), "deterministic"),
    "buffer moves when frozen": (planted(after(drifting)), "frozen"),
    "batch norm kept in training": (planted(train=stays_training), "frozen"),
    "batch norm kept in training inside a model": (planted(train=stays_training), "frozen_in_a_model"),
    "buffer drawn anew": (
        planted(after(lambda s, v, i: v + s.offset), __init__=with_drawn_buffer),
        "pretrained_equals_constructor",
    ),
    "layer in fp32 alone": (
        planted(__init__=with_extra("extra", lambda: nn.Linear(2, 2, dtype=torch.float32))),
        "built_in_bfloat16",
    ),
    "buffer lost": (planted(reset_buffers=lambda self: None), "buffers_are_restored"),
    "bfloat16 crashes": (planted(after(lambda s, v, i: v @ torch.eye(WIDTH))), "bfloat16"),
    "order matters": (planted(after(lambda s, v, i: v + torch.arange(len(v))[:, None, None])), "batch_order"),
    "empty batch crashes": (planted(after(lambda s, v, i: v + 0 * i["lengths"].max())), "empty_batch"),
    "width is another": (planted(after(lambda s, v, i: v[..., :4])), "output_form"),
    "dtype is another": (planted(after(lambda s, v, i: v.double())), "output_form"),
    "weight outside the state": (
        planted(after(lambda s, v, i: v * s.plain[0]), __init__=with_extra("plain", lambda: [torch.randn(())])),
        "state_dict_round_trip",
    ),
    "parameter unused": (
        planted(__init__=with_extra("unused", lambda: nn.Parameter(torch.zeros(2)))),
        "gradients_reach_parameters",
    ),
    "value read while building": (
        planted(__init__=with_extra("number", lambda: torch.ones(()).item())),
        "builds_on_meta",
    ),
    "frame rate is another": (planted(config_frame_rate=property(lambda self: Fraction(50))), "frame_rate"),
    "frame rate is a float": (planted(config_frame_rate=property(lambda self: 100.0)), "frame_rate"),
    "lengths are floats": (planted(config_output_lengths=lambda self, n: n / HOP), "lengths_of_all_kinds"),
    "lengths fall": (planted(config_output_lengths=lambda self, n: (n // HOP) % 12), "lengths_of_all_kinds"),
    "preprocessor cannot be pickled": (planted(config_preprocessor=LambdaPreprocessor), "preprocessing"),
    "lengths of another dtype": (planted(config_preprocessor=Int32Preprocessor), "preprocessing"),
    "configuration loses a field": (loses_a_field(), "config_round_trip"),
    "configuration needs an argument": (needs_an_argument(), "config_defaults"),
    "single sample crashes": (planted(after(lambda s, v, i: v - 0 * v[:, :1].reshape(len(v), 1, -1))), "one_sample"),
}


@pytest.mark.parametrize("check", encoder_checks(FrameEncoderConfig()), ids=str)
def test_a_clean_encoder_passes(check):
    check()


@pytest.mark.parametrize(("config", "name"), FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_is_caught(config, name):
    (check,) = [check for check in encoder_checks(config) if check.name == name]
    with pytest.raises(AssertionError, match=f"encoder 'test.frames' fails '{name}'"):
        check()


def test_a_config_that_imports_torch_is_caught(tmp_path, monkeypatch):
    (tmp_path / "heavy_config_for_test.py").write_text("import torch\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = type("Heavy", (FrameEncoderConfig,), {"__module__": "heavy_config_for_test"})()
    (check,) = [check for check in encoder_checks(config) if check.name == "config_import"]
    with pytest.raises(AssertionError, match="imports torch"):
        check()


def test_the_contract_reports_every_failing_check_at_once():
    with pytest.raises(AssertionError) as caught:
        encoder_contract(planted(after(noisy)))
    assert "fails 'frozen'" in str(caught.value)
    assert "fails 'deterministic'" in str(caught.value)


def test_checks_are_skipped_by_name_only_where_they_exist():
    names = {check.name for check in encoder_checks(FrameEncoderConfig(), skip=("bfloat16",))}
    assert "bfloat16" not in names
    assert len(names) == len(encoder_checks(FrameEncoderConfig())) - 1
    with pytest.raises(ValueError, match="no such check"):
        encoder_checks(FrameEncoderConfig(), skip=("bflaot16",))


def test_media_of_another_modality_need_a_factory():
    config = planted(config_modality="image")
    with pytest.raises(AssertionError, match="pass `medium="):
        encoder_contract(config)
