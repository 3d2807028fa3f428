"""Loading published weights: layouts, strictness, and files that cannot be used."""

from __future__ import annotations

import json
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from speechlmm_core.checkpoint.weights import load_weights
from speechlmm_core.errors import CheckpointError


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {"weight": torch.randn(3, 2, generator=generator), "bias": torch.randn(3, generator=generator)}


def linear() -> nn.Linear:
    return nn.Linear(2, 3)


def equal(module: nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, tensors[name]) for name, value in module.state_dict().items())


def test_layouts(tmp_path, tensors):
    whole, sharded, pickled, shards = (tmp_path / name for name in ("whole", "sharded", "pickled", "pickled_shards"))
    for folder in (whole, sharded, pickled, shards):
        folder.mkdir()
    save_file(tensors, whole / "model.safetensors")
    index = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        save_file({name: tensor}, sharded / f"part-{number}.safetensors")
        torch.save({name: tensor}, shards / f"part-{number}.bin")
        index[name] = f"part-{number}"
    for folder, suffix, file in (
        (sharded, ".safetensors", "model.safetensors.index.json"),
        (shards, ".bin", "pytorch_model.bin.index.json"),
    ):
        (folder / file).write_text(json.dumps({"weight_map": {k: v + suffix for k, v in index.items()}}))
    torch.save(tensors, pickled / "pytorch_model.bin")
    for folder in (whole, sharded, pickled, shards):
        module = linear()
        load_weights(module, folder)
        assert equal(module, tensors), folder.name


def test_prefixes_renaming_and_other_parts(tmp_path, tensors):
    save_file(
        {"model.encoder.weight": tensors["weight"], "model.encoder.shift": tensors["bias"], "head.x": torch.zeros(1)},
        tmp_path / "model.safetensors",
    )
    module = linear()
    load_weights(
        module,
        tmp_path,
        prefixes=("model.encoder.", ""),
        ignore=("head.",),
        rename=lambda name: name.replace("shift", "bias"),
    )
    assert equal(module, tensors)


def test_a_name_below_the_root_of_components(tmp_path, tensors, monkeypatch):
    (tmp_path / "acme" / "net").mkdir(parents=True)
    save_file(tensors, tmp_path / "acme" / "net" / "model.safetensors")
    monkeypatch.setenv("PRETRAINED_COMPONENTS", str(tmp_path))
    module = linear()
    load_weights(module, "acme/net")
    assert equal(module, tensors)


def test_the_module_keeps_its_dtype(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    module = linear().bfloat16()
    load_weights(module, tmp_path)
    assert module.weight.dtype == torch.bfloat16
    assert torch.equal(module.weight, tensors["weight"].bfloat16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, r"1 tensors missing \(bias\)"),
        ({"extra": torch.zeros(1)}, r"1 tensors unexpected \(extra\)"),
        ({"bias": torch.zeros(4)}, r"of the wrong shape or value \(bias is \(4,\), expected \(3,\)\)"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, tensors, change, message):
    changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
    save_file(changed, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_weights(linear(), tmp_path)


def test_folders_that_hold_no_weights(tmp_path, tensors):
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_weights(linear(), tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"weight": "gone.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"lacks gone\.safetensors"):
        load_weights(linear(), tmp_path)
    index.write_text(json.dumps({"weight_map": {"weight": "../model.safetensors"}}))
    with pytest.raises(CheckpointError, match="plain file name"):
        load_weights(linear(), tmp_path)
    index.write_text("not json")
    with pytest.raises(CheckpointError, match="not an index"):
        load_weights(linear(), tmp_path)


def test_broken_files(tmp_path, tensors):
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(linear(), tmp_path)
    file.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(linear(), tmp_path)


def test_torchscript_is_called_by_its_name(tmp_path, tensors):
    file = tmp_path / "pytorch_model.bin"
    torch.save(tensors, file)
    with ZipFile(file, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/constants.pkl", b"")
    with pytest.warns(UserWarning, match="TorchScript"), pytest.raises(RuntimeError):
        torch.load(file, weights_only=True)  # so torch takes it for one
    with pytest.raises(CheckpointError, match="it is a TorchScript archive, which holds code; expected a state dict"):
        load_weights(linear(), tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_pickles_are_not_executed(tmp_path, tensors, capsys):
    torch.save({**tensors, "evil": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(linear(), tmp_path)
    assert "executed" not in capsys.readouterr().out
