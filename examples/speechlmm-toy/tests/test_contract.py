"""The sensor encoder keeps the contract of an encoder."""

import pytest
import torch
from speechlmm_toy.config import SensorEncoderConfig

from speechlmm_core.media.medium import Medium
from speechlmm_core.testing import encoder_checks


def readings(num_samples, seed):
    return Medium(torch.randn(num_samples, 6, generator=torch.Generator().manual_seed(seed)), sampling_rate=100)


@pytest.mark.parametrize("check", encoder_checks(SensorEncoderConfig(), medium=readings), ids=str)
def test_the_contract(check):
    check()
