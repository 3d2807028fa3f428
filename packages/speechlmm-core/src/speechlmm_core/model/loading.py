"""Loading a saved model: the constructor, then its weights, strictly."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from speechlmm_core.checkpoint.load import read_config, read_model_config, resolve_model_path, restore
from speechlmm_core.errors import CheckpointError, ConfigError, MissingDependencyError
from speechlmm_core.model.dtypes import default_dtype
from speechlmm_core.model.hf_config import SpeechLMMConfig
from speechlmm_core.model.quantise import quantise

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM


def load_model(
    model_class: type[SpeechLMM],
    path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    attn_implementation: str | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
) -> SpeechLMM:
    """Loads a model in evaluation mode.

    Args:
        model_class: The class to build.
        path: Model path.
        dtype: Type of the parameters; "auto" for the saved one.
        device: Where to put it; None for the CPU.
        attn_implementation: Overrides the configuration's.
        load_in_4bit: Quantise the language model's linear layers to 4 bits (bitsandbytes).
        load_in_8bit: Quantise them to 8 bits.

    Raises:
        CheckpointError: The checkpoint is missing, incomplete or does not fit.
        MissingDependencyError: Quantisation is asked for and bitsandbytes is not installed.
    """
    if load_in_4bit and load_in_8bit:
        raise ConfigError("give either load_in_4bit or load_in_8bit, not both")
    if load_in_4bit or load_in_8bit:
        _require_bitsandbytes()
    folder = resolve_model_path(path)
    data = read_config(folder)
    config = read_model_config(folder)
    if attn_implementation not in (None, "auto"):
        config = config.model_copy(update={"attn_implementation": attn_implementation})
    if isinstance(dtype, str):
        name = (data.get("dtype") or "float32") if dtype == "auto" else dtype
        found = getattr(torch, name, None)
        if not isinstance(found, torch.dtype):
            raise CheckpointError(f"unknown dtype {name!r}; expected auto, float32, bfloat16 or float16")
        dtype = found
    with default_dtype(dtype):
        shell = SpeechLMMConfig(model=config.model_dump(mode="json"), dtype=dtype)
        shell.name_or_path = str(folder)
        model = model_class(shell)
    restore(model, folder)
    if load_in_4bit or load_in_8bit:
        quantise(model.text_decoder.model, bits=4 if load_in_4bit else 8, compute_dtype=dtype)
    torch.nn.Module.to(model, device or "cpu")
    return model.eval()


def _require_bitsandbytes() -> None:
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            "loading in 4 or 8 bits needs bitsandbytes, which is not installed: pip install 'speechlmm-core[quant]'"
        )
