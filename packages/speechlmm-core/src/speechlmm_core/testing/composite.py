"""The component under test inside a whole, tiny model: saved, loaded, frozen.

Shapes: B batch, L samples, T frames, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch

from speechlmm_core.config import ModelConfig
from speechlmm_core.interfaces.adapter import adapters
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.interfaces.objective import objectives
from speechlmm_core.registry import ComponentConfig, Registry
from speechlmm_core.testing.toy import ToyAdapterConfig, ToyEncoderConfig

DECODER_WIDTH = 64


@contextmanager
def tiny_model_config(towers: Mapping[str, Any]) -> Iterator[ModelConfig]:
    """A model around some components; within the block their types are known, installed or not.

    Args:
        towers: Keys of a `ModelConfig`; a tiny text decoder is added.
    """
    with ExitStack() as stack:
        known: list[ComponentConfig] = [ToyEncoderConfig(), ToyAdapterConfig()]
        for value in towers.values():
            known += value.values() if isinstance(value, dict) else [value]
        for config in known:
            for registry in (encoders, adapters, objectives):
                if isinstance(config, registry.base):
                    stack.enter_context(stand_in(registry, type(config)))
        width = {"model_type": "llama", "hidden_size": DECODER_WIDTH, "intermediate_size": 96, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
        yield ModelConfig.model_validate({"text_decoder": {"type": "causal_lm", "model": width | heads}, **towers})


@contextmanager
def stand_in(registry: Registry[Any], cls: type[Any]) -> Iterator[None]:
    """Makes a registry resolve the name of a class to that class, for the duration of a block."""
    classes, name = registry.loaded, cls.model_fields["type"].default
    before = classes.get(name)
    classes[name] = cls
    try:
        yield
    finally:
        if before is None:
            del classes[name]
        else:
            classes[name] = before


def saved_and_loaded(config: ModelConfig) -> tuple[Any, Any]:
    """A new model and the same one, saved and loaded by `from_pretrained`; both in eval mode."""
    from speechlmm_core.checkpoint.save import save_model
    from speechlmm_core.model.speechlmm import SpeechLMM
    from speechlmm_core.processor.processor import SpeechLMMProcessor

    model = new_model(config)
    with TemporaryDirectory() as folder:
        save_model(model, SpeechLMMProcessor.from_config(config), folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return model, SpeechLMM.from_pretrained(folder)


def new_model(config: ModelConfig) -> Any:
    """A new model with random weights in eval mode, always the same."""
    from speechlmm_core.model.speechlmm import SpeechLMM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SpeechLMM.from_model_config(config, load_base_weights=False).eval()
