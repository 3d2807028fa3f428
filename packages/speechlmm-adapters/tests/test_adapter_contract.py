"""The conformance kit over every adapter of the package."""

from __future__ import annotations

import pytest

from speechlmm_adapters.identity.config import IdentityAdapterConfig
from speechlmm_adapters.mlp.config import MLPAdapterConfig
from speechlmm_adapters.stack.config import StackAdapterConfig
from speechlmm_core.testing import adapter_checks

CONFIGS = [
    MLPAdapterConfig(hidden_size=24),
    MLPAdapterConfig(hidden_size=24, stack=3, num_layers=3, residual="linear", layer_norm=True),
    IdentityAdapterConfig(),
    StackAdapterConfig(
        stages=[MLPAdapterConfig(hidden_size=24, stack=2), IdentityAdapterConfig(), MLPAdapterConfig(hidden_size=16)],
        hidden_size=20,
    ),
]


@pytest.mark.parametrize("check", [check for config in CONFIGS for check in adapter_checks(config)], ids=str)
def test_contract(check):
    check()
