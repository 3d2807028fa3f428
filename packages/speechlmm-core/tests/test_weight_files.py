"""Weights in single files, as some research models are published."""

from __future__ import annotations

import argparse

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from speechlmm_core.checkpoint.source import pretrained_file, resolve_pretrained
from speechlmm_core.checkpoint.weights import load_weights, weight_files
from speechlmm_core.errors import CheckpointError

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([7.0, 8.0])}


def loaded(source, **options):
    module = nn.Linear(3, 2)
    load_weights(module, source, **options)
    return module


def refusal(path):
    """The message, which is one line of ours: no advice to unpickle, no control characters."""
    with pytest.raises(CheckpointError) as caught:
        loaded(path)
    message = str(caught.value)
    assert repr(str(path)) in message
    assert "expected a state dict of tensors, as safetensors or saved by `torch.save" in message
    assert message.isprintable()
    assert "weights_only" not in message
    return message


@pytest.mark.parametrize(
    "content",
    [TENSORS, {"state_dict": TENSORS, "epoch": 3}, {"model": {"state_dict": TENSORS}}, {"e2e": TENSORS}],
    ids=["bare", "state_dict", "nested", "e2e"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_file(tmp_path, content, zipped):
    torch.save(content, tmp_path / "vsr.pth", _use_new_zipfile_serialization=zipped)
    for source in (tmp_path / "vsr.pth", tmp_path):
        module = loaded(source)
        assert torch.equal(module.weight, TENSORS["weight"])
        assert torch.equal(module.bias, TENSORS["bias"])


def test_file_below_the_root_of_components(tmp_path, monkeypatch):
    save_file(TENSORS, tmp_path / "vsr.safetensors")
    monkeypatch.setenv("PRETRAINED_COMPONENTS", str(tmp_path))
    assert weight_files("vsr.safetensors") == [tmp_path / "vsr.safetensors"]
    assert torch.equal(loaded("vsr.safetensors").bias, TENSORS["bias"])
    assert pretrained_file("other.safetensors") is None
    assert pretrained_file(str(tmp_path)) is None


def test_no_such_file(tmp_path, monkeypatch):
    """A name that ends like a file is not looked for on the hub."""
    monkeypatch.setenv("PRETRAINED_COMPONENTS", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"no file 'vsr\.pth' \(nor one below .*put it below"):
        weight_files("vsr.pth")


def test_a_file_is_no_folder(tmp_path):
    torch.save(TENSORS, tmp_path / "vsr.pth")
    with pytest.raises(CheckpointError, match="is a file, expected the folder"):
        resolve_pretrained(str(tmp_path / "vsr.pth"))


def test_several_files_are_not_chosen_from(tmp_path):
    for name in ("vsr.pth", "asr.pth"):
        torch.save(TENSORS, tmp_path / name)
    with pytest.raises(CheckpointError, match="holds no weights"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ([1, 2], "type list;"),
        ({1: torch.zeros(1)}, "type Tensor under 1;"),
        ({"state_dict": 3.0}, "type float under 'state_dict';"),
        ({"weight": TENSORS["weight"], "bias": None}, "type NoneType under 'bias';"),
        ({"state_dict": {**TENSORS, "step": 3}}, "type int under 'step';"),
    ],
)
def test_files_of_something_else(tmp_path, content, held):
    torch.save(content, tmp_path / "vsr.pth")
    assert f"holds a value of {held}" in refusal(tmp_path / "vsr.pth")


def legacy(path):
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


def zipped(path):
    torch.save(TENSORS, path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", ["pth", "bin"])
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: b"", "it is empty"),
        (lambda path: b"not found\n", "or no file of torch's"),
        (lambda path: b"<!DOCTYPE html>" * 99, "or no file of torch's"),
        (lambda path: b"\x80\x02", "or no file of torch's"),
        (lambda path: legacy(path)[:-9], "or no file of torch's"),
        (lambda path: legacy(path)[:40], "or no file of torch's"),
        (lambda path: zipped(path)[:-9], "or no file of torch's"),
        (lambda path: zipped(path)[:300], "or no file of torch's"),
    ],
    ids=["empty", "text", "page", "start", "legacy", "legacy_start", "zip", "zip_start"],
)
def test_damaged_files(tmp_path, suffix, damage, why):
    path = tmp_path / f"vsr.{suffix}"
    path.write_bytes(damage(path))
    message = refusal(path)
    assert why in message
    assert message.endswith("fetch it again")


def test_code_is_not_run(tmp_path):
    torch.save({"state_dict": nn.Linear(3, 2)}, tmp_path / "vsr.pth")
    assert "holds Python objects (torch.nn.modules.linear.Linear)" in refusal(tmp_path / "vsr.pth")


@pytest.mark.parametrize("zip_archive", [True, False])
def test_a_training_script_s_settings_are_not_unpickled(tmp_path, zip_archive):
    """As PyTorch Lightning saves them beside the tensors."""
    content = {"state_dict": TENSORS, "hyper_parameters": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "vsr.ckpt", _use_new_zipfile_serialization=zip_archive)
    message = refusal(tmp_path / "vsr.ckpt")
    assert "holds Python objects (argparse.Namespace)" in message
    assert "save its tensors alone" in message
