"""Selecting tensors by byte ranges against safetensors itself, and what is no file of tensors."""

import hashlib
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from speechlmm_core.errors import CheckpointError
from speechlmm_train.download.tensors import convert_pickle, git_sha1, read_header, select_tensors, tensor_names

TENSORS = {
    "decoder.a": torch.randn(3, 4),
    "encoder.b": torch.arange(7),
    "encoder.c": torch.randn(5).to(torch.bfloat16),
    "encoder.empty": torch.zeros(0, 3),
    "encoder.scalar": torch.tensor(2.5, dtype=torch.float64),
    "head": torch.tensor([True, False]),
}


def encoder(name):
    return name.startswith("encoder.")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "whole.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("wants", [encoder, lambda name: True, lambda name: False], ids=["some", "all", "none"])
def test_selected_tensors_are_what_safetensors_reads(source, tmp_path, wants):
    target = tmp_path / "part.safetensors"
    names, digest = select_tensors(source, target, wants)
    found = load_file(target)
    assert set(found) == set(names) == {name for name in TENSORS if wants(name)}
    for name, tensor in found.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])
    with safe_open(target, framework="pt") as handle:
        assert handle.metadata() == {"format": "pt"}
    assert digest == hashlib.sha256(target.read_bytes()).hexdigest()
    assert sorted(tensor_names(target)) == sorted(names)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1", "no safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "no safetensors file"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "no safetensors file"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_a_file_that_was_cut_off_is_refused(source, tmp_path):
    source.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is cut off"):
        select_tensors(source, tmp_path / "part.safetensors", encoder)
    assert not (tmp_path / "part.safetensors").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_tensors_are_converted(tmp_path, zipped):
    tied = torch.randn(4, 4)
    content = {"encoder.a": tied, "encoder.b": tied, "encoder.t": torch.randn(2, 3).T, "decoder.c": torch.zeros(2)}
    torch.save(content, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    names, digest = convert_pickle(tmp_path / "x.bin", tmp_path / "x.safetensors", encoder)
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(names) == {"encoder.a", "encoder.b", "encoder.t"}
    assert all(torch.equal(value, content[name]) for name, value in found.items())
    assert digest == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("content", [{"a": Harmful()}, {"a": {"b": torch.zeros(1)}}, [torch.zeros(1)]])
def test_pickles_of_anything_else_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=r"holds .*; expected a state dict of tensors"):
        convert_pickle(tmp_path / "x.bin", tmp_path / "x.safetensors", encoder)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"not found", b"\x80\x02"])
def test_damaged_pickles_are_refused(tmp_path, content):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be read: it is .*fetch it again"):
        convert_pickle(tmp_path / "x.bin", tmp_path / "x.safetensors", encoder)
    assert not (tmp_path / "x.safetensors").exists()


def test_the_hash_of_small_files_is_that_of_git(tmp_path):
    (tmp_path / "x").write_text("hello\n")
    assert git_sha1(tmp_path / "x") == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object, as documented


def test_headers_are_read_as_they_are(source):
    header, start = read_header(source)
    assert start == 8 + int.from_bytes(source.read_bytes()[:8], "little")
    assert json.loads(source.read_bytes()[8:start]) == header
