"""Puts a checkpoint's adapters back on a model, strictly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from speechlmm_core.checkpoint.fill import fill, full_shape
from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.lora.config import LoraAdapterConfig
from speechlmm_core.lora.folder import ADAPTERS, WEIGHTS, adapter_tensors
from speechlmm_core.lora.inject import inject

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM


def put_back(model: SpeechLMM, folder: Path, adapters: Sequence[LoraAdapterConfig]) -> None:
    """Puts on a model the adapters of a checkpoint that it lacks, and gives all of them the checkpoint's values.

    Args:
        model: The model.
        folder: The checkpoint.
        adapters: Those that it lists.

    Raises:
        CheckpointError: A file is missing or damaged, or holds other tensors than its adapter has.
        MissingDependencyError: PEFT is not installed.
    """
    own = {adapter.name for adapter in model.lora_adapters}
    try:
        inject(model, [adapter for adapter in adapters if adapter.name not in own])
    except ConfigError as exc:
        raise CheckpointError(f"the adapters of {str(folder)!r} do not fit its model: {exc}") from exc
    for adapter in adapters:
        _read(model, adapter, folder / ADAPTERS / adapter.name / WEIGHTS)


def _read(model: SpeechLMM, adapter: LoraAdapterConfig, file: Path) -> None:
    targets = adapter_tensors(model, adapter)
    if not file.is_file():
        raise CheckpointError(f"the checkpoint is incomplete: {str(file)!r} is missing")
    try:
        with safe_open(file, framework="pt") as tensors, torch.no_grad():
            names: list[str] = list(tensors.keys())
            faults = [f"{name} is missing" for name in targets if name not in names]
            faults += [f"{name} is unexpected" for name in names if name not in targets]
            for name in names:
                if name not in targets:
                    continue
                value = tensors.get_tensor(name)
                if value.shape == full_shape(targets[name]):
                    fill(targets[name], value)
                else:
                    faults.append(f"{name} is {tuple(value.shape)}, expected {tuple(full_shape(targets[name]))}")
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"cannot read {str(file)!r}: {exc}; the file is damaged, save it again") from exc
    if faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{str(file)!r} does not fit the adapter {adapter.name!r}: {', '.join(faults[:5])}{more}")
