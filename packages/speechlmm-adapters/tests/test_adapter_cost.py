"""What adapters cost: no value is read from the device, and half an hour takes memory in proportion to its length."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from speechlmm_adapters.conv.config import ConvAdapterConfig
from speechlmm_adapters.mlp.config import MLPAdapterConfig
from speechlmm_adapters.qformer.config import QFormerAdapterConfig
from speechlmm_adapters.stack.config import StackAdapterConfig
from speechlmm_adapters.transformer.config import TransformerAdapterConfig
from speechlmm_core.features import Features
from speechlmm_core.interfaces.context import BuildContext

CONTEXT = BuildContext(input_size=64, output_size=64, frame_rate=Fraction(50))
LAYERS = {"hidden_size": 64, "num_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
WINDOWS = QFormerAdapterConfig(**LAYERS, context_fraction=0.5, num_queries=2)
WHOLE = QFormerAdapterConfig(**LAYERS, window_seconds=None, num_queries=8)


class Elements(TorchDispatchMode):
    """Counts the elements of everything that is computed."""

    total = 0
    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.total += sum(sizes)
        self.largest = max([self.largest, *sizes])
        return out


def run(config, num_frames: int) -> Elements:
    """Runs forward and backward on the meta device, where no tensor has a value that could be read."""
    with torch.device("meta"):
        adapter = config.build(CONTEXT).train()
        values = torch.empty(2, num_frames, 64, requires_grad=True)
        lengths = torch.empty(2, dtype=torch.int64)
    with Elements() as elements:
        adapter(Features(values, lengths)).values.sum().backward()
    return elements


@pytest.mark.parametrize(
    "config",
    [
        MLPAdapterConfig(stack=3, residual="interpolation"),
        ConvAdapterConfig(num_residual_layers=1),
        TransformerAdapterConfig(**LAYERS),
        TransformerAdapterConfig(**LAYERS, positions="rotary"),
        WINDOWS,
        WHOLE,
        StackAdapterConfig(stages=[ConvAdapterConfig(), MLPAdapterConfig()]),
    ],
    ids=["mlp", "conv", "transformer", "rotary", "windows", "whole", "stack"],
)
def test_no_value_is_read_from_the_device(config):
    assert run(config, 100).total > 0


@pytest.mark.parametrize("config", [WINDOWS, WHOLE], ids=["windows", "whole"])
def test_the_qformer_is_linear_up_to_half_an_hour(config):
    five, thirty = (run(config, minutes * 60 * 50) for minutes in (5, 30))
    assert 5.7 < thirty.total / five.total < 6.1
    assert 5.9 < thirty.largest / five.largest < 6.1
