"""The conformance kit: what every encoder, adapter and objective must satisfy, for the tests of any package.

A plugin's test is one line: ``encoder_contract(AcmeEncoderConfig(...))``. With pytest, one test per check:
``@pytest.mark.parametrize("check", encoder_checks(config), ids=str)`` and ``check()`` in the test's body.
"""

from speechlmm_core.testing.adapter import adapter_checks, adapter_contract
from speechlmm_core.testing.checks import Check
from speechlmm_core.testing.encoder import encoder_checks, encoder_contract
from speechlmm_core.testing.media import noise_audio, noise_video
from speechlmm_core.testing.objective import objective_checks, objective_contract

__all__ = [
    "Check",
    "adapter_checks",
    "adapter_contract",
    "encoder_checks",
    "encoder_contract",
    "noise_audio",
    "noise_video",
    "objective_checks",
    "objective_contract",
]
