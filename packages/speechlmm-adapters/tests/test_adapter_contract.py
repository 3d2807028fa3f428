"""The conformance kit over every adapter of the package."""

from __future__ import annotations

import pytest

from speechlmm_adapters.cif.config import CIFAdapterConfig
from speechlmm_adapters.conv.config import ConvAdapterConfig
from speechlmm_adapters.ctc.config import CTCAdapterConfig
from speechlmm_adapters.identity.config import IdentityAdapterConfig
from speechlmm_adapters.mlp.config import MLPAdapterConfig
from speechlmm_adapters.qformer.config import QFormerAdapterConfig
from speechlmm_adapters.stack.config import StackAdapterConfig
from speechlmm_adapters.transformer.config import TransformerAdapterConfig
from speechlmm_core.testing import adapter_checks

LAYERS = {"hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CONFIGS = [
    MLPAdapterConfig(hidden_size=24),
    MLPAdapterConfig(hidden_size=24, stack=3, num_layers=3, residual="linear", layer_norm=True),
    MLPAdapterConfig(
        hidden_size=24, activation="relu", residual="interpolation", hidden_layer_norm=True, output_layer_norm=True
    ),
    IdentityAdapterConfig(),
    ConvAdapterConfig(),
    ConvAdapterConfig(
        kernel_sizes=(4, 5), strides=(3, 2), padding="valid", hidden_size=10, num_residual_layers=1, layer_norm=True
    ),
    TransformerAdapterConfig(**LAYERS),
    TransformerAdapterConfig(**LAYERS | {"hidden_size": 12}, positions="rotary"),
    QFormerAdapterConfig(**LAYERS, window_seconds=0.1, context_seconds=0.04, num_queries=2),
    QFormerAdapterConfig(**LAYERS, window_frames=4),
    QFormerAdapterConfig(**LAYERS, window_seconds=None, num_queries=2),
    CIFAdapterConfig(),
    CIFAdapterConfig(firing_threshold=0.8, kernel_size=2, hidden_size=7, mean_frame_rate=20, ctc_loss_weight=0.5),
    CTCAdapterConfig(),
    CTCAdapterConfig(vocabulary="characters", merge="weighted", drop_blanks=True, max_compressed_length=0.3),
    StackAdapterConfig(
        stages=[MLPAdapterConfig(hidden_size=24, stack=2), IdentityAdapterConfig(), MLPAdapterConfig(hidden_size=16)],
        hidden_size=20,
    ),
    StackAdapterConfig(stages=[ConvAdapterConfig(), CIFAdapterConfig(), TransformerAdapterConfig(**LAYERS)]),
    StackAdapterConfig(
        stages=[
            CTCAdapterConfig(vocabulary="characters", merge="weighted"),
            CTCAdapterConfig(vocabulary="characters", max_compressed_length=0.5),
            MLPAdapterConfig(hidden_size=16),
        ],
        hidden_size=20,
    ),
]


@pytest.mark.parametrize("check", [check for config in CONFIGS for check in adapter_checks(config)], ids=str)
def test_contract(check):
    check()
