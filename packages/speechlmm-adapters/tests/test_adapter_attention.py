"""Adapters whose attention is of one kind tell who asks for another."""

from __future__ import annotations

from fractions import Fraction

import pytest

from speechlmm_adapters.mlp.config import MLPAdapterConfig
from speechlmm_adapters.qformer.config import QFormerAdapterConfig
from speechlmm_adapters.stack.config import StackAdapterConfig
from speechlmm_adapters.transformer.config import TransformerAdapterConfig
from speechlmm_core.attention import choice
from speechlmm_core.interfaces.context import BuildContext

SIZES = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TRANSFORMER = TransformerAdapterConfig(**SIZES)
STACK = StackAdapterConfig(stages=[MLPAdapterConfig(), TRANSFORMER])


@pytest.mark.parametrize("config", [TRANSFORMER, QFormerAdapterConfig(**SIZES), STACK], ids=lambda config: config.type)
@pytest.mark.parametrize("asked", ["auto", "sdpa", "eager", "flash_attention_2"])
def test_it_runs_on_sdpa_and_says_so(config, asked, caplog, monkeypatch):
    monkeypatch.setattr(choice, "_reported", set())
    sizes = {"input_size": 16, "output_size": 16, "frame_rate": Fraction(50)}
    for _ in range(2):
        config.build(BuildContext(component="audio_adapter", attn_implementation=asked, flash_attention=True, **sizes))
    told = [] if asked in ("auto", "sdpa") else [f"cannot run on {asked!r} here; it runs on 'sdpa'"]
    assert [record.getMessage().partition(" ")[2] for record in caplog.records] == told
    assert all(record.getMessage().startswith("audio_adapter") for record in caplog.records)
