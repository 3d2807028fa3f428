"""The norm over time of the base models against torch's on each clip alone, and what memory it takes.

Shapes: B rows, C channels, T frames.
"""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from speechlmm_encoders.raw_audio import norm as module
from speechlmm_encoders.raw_audio.norm import masked_channel_norm

CHANNELS = 6
LENGTHS = (50, 1, 33, 0, 49)


def build() -> nn.GroupNorm:
    torch.manual_seed(0)
    norm = nn.GroupNorm(CHANNELS, CHANNELS)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    return norm


def batch(offset: float = 0.0) -> torch.Tensor:
    return torch.randn(len(LENGTHS), CHANNELS, 50, generator=torch.Generator().manual_seed(0)) + offset


@pytest.mark.parametrize("block", [1, 200, 1 << 22])
def test_each_row_s_own_frames_and_their_gradient(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    norm, values = build(), batch().requires_grad_()
    lengths = torch.tensor(LENGTHS)
    out = masked_channel_norm(values, lengths, norm)
    direction = torch.randn(out.shape)
    direction *= (torch.arange(50) < lengths[:, None])[:, None]
    (out * direction).sum().backward()
    for row, length in enumerate(LENGTHS):
        if length > 1:  # torch refuses one value a channel
            own = values.detach()[row : row + 1, :, :length].requires_grad_()
            expected = norm(own)
            torch.testing.assert_close(out[row : row + 1, :, :length], expected, atol=1e-5, rtol=1e-5)
            (expected * direction[row : row + 1, :, :length]).sum().backward()
            assert values.grad is not None
            torch.testing.assert_close(values.grad[row : row + 1, :, :length], own.grad, atol=1e-5, rtol=1e-5)
            assert not values.grad[row, :, length:].any()
    torch.testing.assert_close(out[1, :, 0], norm.bias, atol=1e-4, rtol=0)  # one frame over an epsilon of 1e-5
    assert out.isfinite().all()


def test_a_mean_far_from_zero_costs_no_precision():
    norm, values = build(), batch(offset=1000.0)
    expected = nn.functional.group_norm(values[:1].double(), CHANNELS, norm.weight.double(), norm.bias.double())
    out = masked_channel_norm(values, torch.tensor(LENGTHS), norm)
    torch.testing.assert_close(out[:1].double(), expected, atol=2e-3, rtol=0)  # 1000 itself is known to 6e-5


def test_bfloat16_is_summed_in_fp32():
    norm, values = build().bfloat16(), batch(offset=3.0).bfloat16()
    out = masked_channel_norm(values, torch.tensor(LENGTHS), norm)
    assert out.dtype == torch.bfloat16
    expected = nn.functional.group_norm(values[:1].float(), CHANNELS, norm.weight.float(), norm.bias.float())
    torch.testing.assert_close(out[:1].float(), expected, atol=0.03, rtol=0.01)


def test_rows_of_one_medium_share_their_statistics():
    norm, whole = build(), torch.randn(2, CHANNELS, 90)
    # 90 frames in windows of 40 that begin every 25, and 30 frames in one window
    rows = torch.stack([whole[0, :, :40], whole[1, :, :40], whole[0, :, 25:65], whole[0, :, 50:90]])
    out = masked_channel_norm(rows, torch.tensor([25, 30, 25, 40]), norm, torch.tensor([1, 0, 1, 1]))
    first, second = norm(whole[:1])[0], norm(whole[1:, :, :30])[0]
    for got, expected in ((out[0], first[:, :40]), (out[2], first[:, 25:65]), (out[3], first[:, 50:90])):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[1, :, :30], second, atol=1e-5, rtol=1e-5)


class Memory(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, as long as these live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {
            one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)
        }
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in given:
                storage = one.untyped_storage()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1.3), (torch.bfloat16, 3.5)])
def test_memory_beside_the_input(dtype, most, monkeypatch):
    """In fp32 the output alone; in bfloat16 it is once made in fp32."""
    monkeypatch.setattr(module, "BLOCK", 1 << 10)
    norm, values = build(), torch.randn(4, CHANNELS, 2_000, dtype=dtype)
    with torch.no_grad(), Memory() as memory:
        masked_channel_norm(values, torch.tensor([2_000, 900, 1, 0]), norm)
    assert memory.peak < most * values.nbytes
