"""The published layout of AutoAVSR's visual speech encoder, and loading it."""

from __future__ import annotations

from importlib.resources import files

import pytest
import torch
import yaml
from safetensors.torch import save_file

from speechlmm_core.errors import CheckpointError
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_encoders.auto_avsr.config import AutoAvsrEncoderConfig

TINY = {
    "frontend_hidden_sizes": [3, 4, 5, 6],
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "conv_depthwise_kernel_size": 5,
}


def published_shapes(widths, hidden, layers, heads, inner, kernel):
    """Names and shapes as in the files of the AutoAVSR model zoo."""
    shapes = {}

    def norm(name, size, statistics=True):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = [size]
        if statistics:
            shapes[f"{name}.running_mean"] = shapes[f"{name}.running_var"] = [size]
            shapes[f"{name}.num_batches_tracked"] = []

    def linear(name, size_in, size_out, *kernel_size):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [size_out, size_in, *kernel_size], [size_out]

    shapes["encoder.frontend.frontend3D.0.weight"] = [widths[0], 1, 5, 7, 7]
    norm("encoder.frontend.frontend3D.1", widths[0])
    before = widths[0]
    for stage, width in enumerate(widths, start=1):
        for block in (0, 1):
            at = f"encoder.frontend.trunk.layer{stage}.{block}"
            shapes[f"{at}.conv1.weight"] = [width, before, 3, 3]
            shapes[f"{at}.conv2.weight"] = [width, width, 3, 3]
            norm(f"{at}.bn1", width)
            norm(f"{at}.bn2", width)
            if stage > 1 and block == 0:
                shapes[f"{at}.downsample.0.weight"] = [width, before, 1, 1]
                norm(f"{at}.downsample.1", width)
            before = width
    linear("encoder.embed.0", widths[-1], hidden)
    for number in range(layers):
        at = f"encoder.encoders.{number}"
        for bias in "uv":
            shapes[f"{at}.self_attn.pos_bias_{bias}"] = [heads, hidden // heads]
        for part in ("q", "k", "v", "out"):
            linear(f"{at}.self_attn.linear_{part}", hidden, hidden)
        shapes[f"{at}.self_attn.linear_pos.weight"] = [hidden, hidden]
        for part in ("feed_forward", "feed_forward_macaron"):
            linear(f"{at}.{part}.w_1", hidden, inner)
            linear(f"{at}.{part}.w_2", inner, hidden)
        linear(f"{at}.conv_module.pointwise_cov1", hidden, 2 * hidden, 1)
        linear(f"{at}.conv_module.depthwise_conv", 1, hidden, kernel)
        linear(f"{at}.conv_module.pointwise_cov2", hidden, hidden, 1)
        norm(f"{at}.conv_module.norm", hidden)
        for part in ("norm_ff", "norm_mha", "norm_ff_macaron", "norm_conv", "norm_final"):
            norm(f"{at}.{part}", hidden, statistics=False)
    norm("encoder.after_norm", hidden, statistics=False)
    return shapes


@pytest.fixture(scope="module")
def tensors():
    """A tiny model in the published layout, with the parts that the encoder does not need."""
    generator = torch.Generator().manual_seed(5)
    shapes = published_shapes([3, 4, 5, 6], 12, 2, 3, 20, 5)
    found = {
        name: torch.rand(shape, generator=generator) + 0.5 if shape else torch.tensor(7)
        for name, shape in shapes.items()
    }
    extra = {"decoder.embed.0.weight": torch.zeros(5, 12), "ctc.ctc_lo.weight": torch.zeros(5, 12)}
    return found, found | extra


def load(path, **fields):
    encoder = AutoAvsrEncoderConfig.model_validate({"model": TINY, "pretrained": str(path), **fields})
    module = encoder.build(BuildContext())
    module.load_base_weights()
    return module


def assert_loaded(module, tensors):
    own = module.model.state_dict()
    assert {f"encoder.{name}" for name in own} == set(tensors)
    for name, tensor in own.items():
        assert torch.equal(tensor, tensors[f"encoder.{name}"]), name


def test_the_full_size_has_the_published_names_and_shapes():
    wanted = published_shapes([64, 128, 256, 512], 768, 12, 12, 3072, 31)
    assert len(wanted) == 604
    text = (files("speechlmm_encoders.presets") / "model" / "video_encoder" / "auto_avsr.yaml").read_text("utf-8")
    assert text.startswith("# @package model.video_encoder\n")
    for config in (AutoAvsrEncoderConfig(), encoders.validate(yaml.safe_load(text))):
        with torch.device("meta"):
            module = config.build(BuildContext())
        own = {f"encoder.{name}": list(value.shape) for name, value in module.model.state_dict().items()}
        assert own == wanted


LAYOUTS = {
    "bare": lambda tensors: tensors,
    "model.": lambda tensors: {f"model.{name}": tensor for name, tensor in tensors.items()},
    "e2e.": lambda tensors: {f"e2e.{name}": tensor for name, tensor in tensors.items()},
    "model.e2e.": lambda tensors: {f"model.e2e.{name}": tensor for name, tensor in tensors.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["pth", "state_dict", "model", "safetensors", "folder"])
def test_loading(tensors, tmp_path, layout, kind):
    encoder, whole = tensors
    content = LAYOUTS[layout](whole)
    path = tmp_path / "vsr_trlrs3vox2_base.pth"
    if kind == "safetensors":
        path = tmp_path / "vsr.safetensors"
        save_file(content, path)
    else:
        torch.save({kind: content, "epoch": 75} if kind in ("state_dict", "model") else content, path)
    assert_loaded(load(tmp_path if kind == "folder" else path), encoder)


def test_an_encoder_alone(tensors, tmp_path):
    """As other tools save it, and as its own state dict is."""
    encoder, _ = tensors
    save_file(
        {name.removeprefix("encoder."): tensor for name, tensor in encoder.items()}, tmp_path / "model.safetensors"
    )
    assert_loaded(load(tmp_path), encoder)


def test_the_name_of_the_preset(tensors, tmp_path, monkeypatch):
    encoder, whole = tensors
    torch.save(whole, tmp_path / "vsr_trlrs3vox2_base.pth")
    monkeypatch.setenv("PRETRAINED_COMPONENTS", str(tmp_path))
    assert_loaded(load("vsr_trlrs3vox2_base.pth"), encoder)


def test_missing_and_unexpected_tensors_are_named(tensors, tmp_path):
    _, whole = tensors
    whole = dict(whole)
    whole["encoder.extra.weight"] = whole.pop("encoder.after_norm.bias")
    torch.save(whole, tmp_path / "vsr.pth")
    with pytest.raises(
        CheckpointError,
        match=r"1 tensors missing \(after_norm\.bias\); 1 tensors unexpected \(encoder\.extra\.weight\)",
    ):
        load(tmp_path / "vsr.pth")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("intermediate_size", 24, r"encoders\.0\.feed_forward\.w_1\.bias is \(20,\), expected \(24,\)"),
        ("num_hidden_layers", 3, r"missing \(encoders\.2\."),
        ("num_hidden_layers", 1, r"unexpected \(encoder\.encoders\.1\."),
        ("frontend_hidden_sizes", [3, 4, 5, 7], r"encoder\.embed\.0\.weight is \(12, 6\), expected \(12, 7\)"),
    ],
)
def test_another_size(tensors, tmp_path, field, value, message):
    torch.save(tensors[1], tmp_path / "vsr.pth")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "vsr.pth", model={**TINY, field: value})


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"no file .*vsr_trlrs3vox2_base\.pth"):
        load(tmp_path / "vsr_trlrs3vox2_base.pth")
