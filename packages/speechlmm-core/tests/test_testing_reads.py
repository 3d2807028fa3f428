"""Reading values from a device is counted, and every other way to wait for it is refused."""

from __future__ import annotations

import pytest
import torch

from speechlmm_core.testing.reads import CountedReads

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
WAITS = {
    "tolist": lambda x: x.tolist(),
    "to the host": lambda x: x.cpu(),
    "boolean index": lambda x: x[x > 2],
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "repeats": lambda x: x.repeat_interleave(x),
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
@pytest.mark.parametrize("device", ["meta", GPU])
def test_what_waits_fails(wait, device):
    x = torch.arange(5, device=device)
    with pytest.raises((RuntimeError, TypeError)), CountedReads():
        wait(x)


@pytest.mark.parametrize("device", ["meta", GPU])
def test_single_values_are_counted(device):
    x = torch.arange(5, device=device)
    with CountedReads(4) as mode:
        assert int(x.max()) == 4
        assert x.sum().add(1).clamp(max=4).item() == 4
        assert bool(x.any())
    assert mode.reads == 3
