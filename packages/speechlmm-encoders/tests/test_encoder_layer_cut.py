"""Layers above the one that is put out are not built, not saved, and left where they are in a checkpoint."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from speechlmm_core.errors import CheckpointError
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.testing import encoder_checks

NETWORKS = {
    "whisper": ("layers", "layer_norm"),
    "whisper_unrestricted": ("layers", "layer_norm"),
    "hubert": ("encoder.layers", None),
    "wavlm": ("encoder.layers", None),
    "hubert-large": ("encoder.layers", "encoder.layer_norm"),
    "wavlm-large": ("encoder.layers", "encoder.layer_norm"),
    "seamless": ("encoder.layers", "encoder.layer_norm"),
    "w2v_bert_2": ("encoder.layers", None),
    "auto_avsr": ("encoders", "after_norm"),
    "hf_audio": ("encoder.layers", "encoder.layer_norm"),
    "hf_audio_mel": ("layers", "layer_norm"),
}
LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}


def preset(name: str) -> dict[str, Any]:
    group = "video_encoder" if name == "auto_avsr" else "audio_encoder"
    name, _, large = name.partition("-")
    path = files("speechlmm_encoders.presets") / "model" / group / f"tiny_{name}.yaml"
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {**data, "model": {**data["model"], **LARGE}} if large else data


def build(data, **options):
    torch.manual_seed(0)
    encoder = encoders.validate({**data, **options}).build(BuildContext()).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return encoder


@pytest.fixture(params=NETWORKS)
def published(request, tmp_path):
    """A checkpoint with all layers, its encoder, and the names of its layers and of the norm after them."""
    data = preset(request.param)
    whole = build(data)
    numbers = data["model"]
    kind = {"whisper_unrestricted": "whisper", "w2v_bert_2": "wav2vec2-bert", "seamless": "seamless_m4t_v2"}
    config = {"model_type": kind.get(data["type"], data["type"]), **numbers}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    data = {**data, "pretrained": str(tmp_path)}
    put(data, whole.model.state_dict())
    return data, whole, *NETWORKS[request.param]


def put(data, tensors):
    file = Path(data["pretrained"]) / "model.safetensors"
    file.unlink()  # what was read of it may still be mapped
    save_file(tensors, file)


def test_only_layers_that_are_reached_are_loaded(published):
    data, whole, layers, norm = published
    for wanted in (0, 1):
        encoder = encoders.validate({**data, "layer": wanted}).build(BuildContext())
        encoder.load_base_weights()
        above = {f"{layers}.{number}." for number in range(wanted, encoder.config.num_layers)}
        above |= {f"{norm}."} if norm else set()
        expected = {name: value for name, value in whole.model.state_dict().items() if not name.startswith((*above,))}
        own = encoder.model.state_dict()
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[name], value) for name, value in expected.items())


def test_whatever_else_is_unexpected_is_still_refused(published):
    data, whole, layers, _ = published
    for name in (f"{layers}.99.weight", f"{layers}.extra", f"{layers}_1.weight", "head.weight"):
        put(data, {**whole.model.state_dict(), name: torch.zeros(2)})
        with pytest.raises(CheckpointError, match="1 tensors unexpected"):
            encoders.validate({**data, "layer": 1}).build(BuildContext()).load_base_weights()
    missing = {name: value for name, value in whole.model.state_dict().items() if not name.startswith(f"{layers}.0.")}
    assert len(missing) < len(whole.model.state_dict())
    put(data, missing)
    with pytest.raises(CheckpointError, match="tensors missing"):
        encoders.validate({**data, "layer": 1}).build(BuildContext()).load_base_weights()


@pytest.mark.parametrize("name", NETWORKS)
def test_all_that_is_built_gets_a_gradient_and_is_saved(name):
    for layer, wanted in ((0, {"gradients_reach_parameters"}), (1, {"gradients_reach_parameters", "builds_on_meta"})):
        config = encoders.validate({**preset(name), "layer": layer})
        found = [check for check in encoder_checks(config) if check.name in wanted]
        assert len(found) == len(wanted)
        for check in found:
            check()
