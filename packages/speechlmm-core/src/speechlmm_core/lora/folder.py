"""An adapter's folder: `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes and reads them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from speechlmm_core.lora.config import LoraAdapterConfig
from speechlmm_core.lora.inject import root_of
from speechlmm_core.lora.parameters import matrices

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM

ADAPTERS = "adapters"
"""Folder of a checkpoint that holds a folder for each adapter."""
STEM = "adapter_model"
WEIGHTS = f"{STEM}.safetensors"
_PREFIX = "base_model.model."


def adapter_tensors(model: SpeechLMM, adapter: LoraAdapterConfig) -> dict[str, Tensor]:
    """An adapter's tensors in the model, by the names that they have in its folder.

    With `bias`, those biases are among them that it trains.
    """
    from peft import get_peft_model_state_dict

    root = root_of(model, adapter)
    module = model.get_submodule(root)
    adapters = matrices(module)
    state = {
        key: value
        for key, value in module.state_dict(keep_vars=True).items()
        if adapters.get(key, adapter.name) == adapter.name
    }
    found = get_peft_model_state_dict(module, state_dict=state, adapter_name=adapter.name, save_embedding_layers=False)
    return {f"{_PREFIX}{key}": value for key, value in found.items()}


def write_adapter_config(model: SpeechLMM, adapter: LoraAdapterConfig, folder: Path) -> None:
    """Writes an adapter's `adapter_config.json`."""
    root = root_of(model, adapter)
    held: Any = model.get_submodule(root)
    config = copy.copy(held.peft_config[adapter.name])
    config.inference_mode = True
    config.base_model_name_or_path = (model.base_sources.get(root.split(".")[0]) or {}).get("pretrained")
    config.save_pretrained(str(folder))
