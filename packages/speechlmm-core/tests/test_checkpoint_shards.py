"""Tensors written one after the other."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from speechlmm_core.checkpoint.shards import ShardWriter, number_of_bytes, stream
from speechlmm_core.errors import OutOfStepError


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=0, max_size=12), st.integers(1, 400))
def test_every_tensor_is_in_one_file_of_the_size(tmp_path_factory, sizes, limit):
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"t{i}": torch.arange(size, dtype=torch.float32) for i, size in enumerate(sizes)}
    writer = ShardWriter(folder, "model", max_shard_size=limit)
    assert stream(tensors.items(), writer) is None
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    found = {}
    for file in files:
        held = load_file(file)
        assert sum(4 * len(tensor) for tensor in held.values()) <= limit or len(held) == 1
        assert not held.keys() & found.keys()
        found |= held
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    if len(files) == 1:
        assert files[0].name == "model.safetensors"
        assert not index.exists()
    else:
        content = json.loads(index.read_text())
        assert content["metadata"]["total_size"] == 4 * sum(sizes)
        assert [file.name for file in files] == sorted({*content["weight_map"].values()})
        assert all(name in load_file(folder / file) for name, file in content["weight_map"].items())


def test_no_more_than_a_file_is_held(tmp_path):
    """Each tensor is gathered when it is its turn, and none is kept beyond its file."""
    alive = []

    def tensors():
        for number in range(20):
            yield f"t{number}", torch.empty(0)

    def gather(_):
        alive.append(len(writer._pending))
        return torch.zeros(25)  # 100 bytes

    writer = ShardWriter(tmp_path, max_shard_size=300)
    assert stream(tensors(), writer, gather) is None
    assert len(alive) == 20
    assert max(alive) == 3


@pytest.mark.parametrize("where", ["walking", "gathering"])
def test_a_process_that_cannot_take_part_says_so_at_once(tmp_path, where):
    """It is no fault to be raised when all have come so far: they never will."""

    def tensors():
        yield "first", torch.zeros(3)
        if where == "walking":
            raise ValueError("no state")
        yield "second", torch.ones(3)

    def gather(tensor):
        if tensor.any():
            raise ValueError("no state")
        return tensor

    for writer in (None, ShardWriter(tmp_path)):
        with pytest.raises(OutOfStepError, match=r"cannot gather the tensor after 'first': no state"):
            stream(tensors(), writer, gather)


@pytest.mark.parametrize(("size", "expected"), [(7, 7), ("5GB", 5 * 10**9), ("1.5 kb", 1500), ("12", 12)])
def test_sizes(size, expected):
    assert number_of_bytes(size) == expected


def test_what_is_no_size():
    with pytest.raises(ValueError, match="'5 apples' is not a size"):
        number_of_bytes("5 apples")
