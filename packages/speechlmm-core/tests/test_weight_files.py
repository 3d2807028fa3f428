"""Weights in single files, as some research models are published."""

from __future__ import annotations

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


@pytest.mark.parametrize("content", [[1, 2], {1: torch.zeros(1)}, {"state_dict": 3.0}])
def test_files_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "vsr.pth")
    with pytest.raises(CheckpointError, match=r"expected tensors by name|missing"):
        loaded(tmp_path / "vsr.pth")


def test_code_is_not_run(tmp_path):
    torch.save({"state_dict": nn.Linear(3, 2)}, tmp_path / "vsr.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        loaded(tmp_path / "vsr.pth")
