"""Writes a model with adapters as a plain one, whose weights hold what the adapters add."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from speechlmm_core.checkpoint.load import read_adapters, read_config, resolve_model_path
from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.errors import CheckpointError
from speechlmm_core.lora.merge import merge
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.replacing import bases_of, check_apart, replaced

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Merged:
    """What was merged."""

    adapters: list[str]
    dtype: str


def merge_lora(model_path: str | Path, output: Path, *, dtype: Dtype = "auto") -> Merged:
    """Merges the adapters of a checkpoint into its weights, and saves all of them.

    Sums are made in fp32, and rounded once to the type that is saved.

    Args:
        model_path: The checkpoint.
        output: Folder for the plain one; a checkpoint there is replaced when the new one is whole, and what else lies
            there stays.
        dtype: Type of the saved weights; `auto` for the checkpoint's.

    Raises:
        CheckpointError: The checkpoint is missing, does not fit, or has no adapters; or the new one cannot be written.
        ConfigError: The output is the checkpoint or a base of it, holds one or lies in one.
        MissingDependencyError: PEFT is not installed.
    """
    folder = resolve_model_path(model_path)
    adapters = read_adapters(folder)
    if not adapters:
        raise CheckpointError(f"{str(folder)!r} has no adapters to merge; it is a plain checkpoint already")
    check_apart(output, [folder, *bases_of(folder)])
    model = SpeechLMM.from_pretrained(folder, dtype="float32")
    merge(model)
    wanted: str = (read_config(folder).get("dtype") or "float32") if dtype == "auto" else dtype
    processor = SpeechLMMProcessor.from_pretrained(folder)
    with replaced(output) as temporary:
        save_model(model.to(getattr(torch, wanted)), processor, temporary)
    return Merged([adapter.name for adapter in adapters], wanted)
