"""What a model consists of, without loading a weight: the table that `plan` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from speechlmm_core.config import ModelConfig
from speechlmm_core.lora.config import LoraAdapterConfig
from speechlmm_core.lora.inject import inject
from speechlmm_core.model.dtypes import default_dtype
from speechlmm_core.model.freezing import freeze, set_trainable
from speechlmm_core.model.hf_config import SpeechLMMConfig
from speechlmm_core.model.speechlmm import SpeechLMM


@dataclass(frozen=True)
class ComponentDescription:
    """One component of a model."""

    name: str
    class_name: str
    source: str
    """Base checkpoint, or `random`."""
    num_parameters: int
    num_trainable: int
    dtype: str
    num_bytes: int
    attn_implementation: str
    """What the component's attention runs on; empty where it has none."""


def meta_model(
    config: ModelConfig,
    *,
    adapters: Sequence[LoraAdapterConfig] = (),
    dtype: torch.dtype = torch.float32,
    flash_attention: bool = False,
) -> SpeechLMM:
    """The model on the meta device: all shapes, no memory.

    Raises:
        ConfigError: The components do not fit together, or an adapter does not fit them.
        MissingDependencyError: There are adapters, and PEFT is not installed.
    """
    with torch.device("meta"), default_dtype(dtype):
        shell = SpeechLMMConfig(model=config.model_dump(mode="json"), dtype=dtype)
        model = SpeechLMM(shell, flash_attention=flash_attention)
        inject(model, adapters)
        return model


def describe(
    config: ModelConfig,
    *,
    freeze_modules: Sequence[str] = (),
    trainable_modules: Sequence[str] | None = None,
    adapters: Sequence[LoraAdapterConfig] = (),
    dtype: torch.dtype = torch.float32,
    flash_attention: bool = False,
) -> list[ComponentDescription]:
    """Describes every component, building on the meta device.

    Args:
        config: The model.
        freeze_modules: Modules that will be frozen.
        trainable_modules: The only modules that will be trained, where that is how they are given.
        adapters: Low-rank adapters that are put on it.
        dtype: Type of the parameters.
        flash_attention: Whether FlashAttention can run where the model will.

    Raises:
        ConfigError: The components do not fit together, or a name matches no module.
    """
    model = meta_model(config, adapters=adapters, dtype=dtype, flash_attention=flash_attention)
    if trainable_modules is None:
        freeze(model, freeze_modules)
    else:
        set_trainable(model, trainable_modules)
    return describe_model(model)


def describe_model(model: SpeechLMM) -> list[ComponentDescription]:
    """Describes every component of a model, frozen as it is to be trained."""
    rows: list[ComponentDescription] = []
    for name, component in model.components().items():
        parameters = list(component.parameters())
        rows.append(
            ComponentDescription(
                name=name,
                class_name=type(component).__name__,
                source=getattr(component.config, "pretrained", None) or "random",
                num_parameters=sum(p.numel() for p in parameters),
                num_trainable=sum(p.numel() for p in parameters if p.requires_grad),
                dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
                num_bytes=sum(p.numel() * p.element_size() for p in parameters),
                attn_implementation=attention_of(component),
            )
        )
    return rows


def attention_of(component: nn.Module) -> str:
    """What a component's attention runs on.

    A module whose attention is its own says so by an attribute `attn_implementation`; otherwise the transformers
    module in its `model` is asked, and where there is none, the modules that it consists of (an adapter's stages).
    """
    if found := _own_attention(component):
        return found
    inner = (_own_attention(module) for module in component.modules() if module is not component)
    return ", ".join(sorted({one for one in inner if one}))


def _own_attention(module: nn.Module) -> str:
    own = getattr(module, "attn_implementation", None)
    if own is None:
        config = getattr(getattr(module, "model", None), "config", None)
        own = getattr(config, "_attn_implementation", None)
    return own if isinstance(own, str) else ""
