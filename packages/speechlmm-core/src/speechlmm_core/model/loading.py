"""Loading a saved model: the constructor, then its weights, strictly."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from speechlmm_core.attention.choice import flash_usable
from speechlmm_core.checkpoint.load import read_config, read_model_config, resolve_model_path, restore
from speechlmm_core.config import ATTENTIONS
from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.model.dtypes import default_dtype
from speechlmm_core.model.hf_config import SpeechLMMConfig
from speechlmm_core.model.placement import DeviceMap, place
from speechlmm_core.model.quantise import quantise_decoder, require_bitsandbytes
from speechlmm_core.registry import nearest

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
    device_map: DeviceMap | None = None,
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
        device_map: Places the parts on several devices, in the place of `device`: `auto` for all GPUs, or devices by
            module name.

    Raises:
        CheckpointError: The checkpoint is missing, incomplete or does not fit.
        ConfigError: There is no such `attn_implementation`, or the device map does not fit.
        MissingDependencyError: Quantisation is asked for and bitsandbytes is not installed.
    """
    if load_in_4bit and load_in_8bit:
        raise ConfigError("give either load_in_4bit or load_in_8bit, not both")
    if device_map is not None and (device is not None or load_in_4bit or load_in_8bit):
        raise ConfigError("device_map goes with neither `device` nor quantised weights, which lie on one device")
    if load_in_4bit or load_in_8bit:
        require_bitsandbytes()
    folder = resolve_model_path(path)
    data = read_config(folder)
    config = read_model_config(folder)
    if attn_implementation not in (None, "auto"):
        if attn_implementation not in ATTENTIONS:
            hint = nearest(str(attn_implementation), list(ATTENTIONS))
            raise ConfigError(
                f"unknown attn_implementation {attn_implementation!r}{hint} (known: {', '.join(ATTENTIONS)})"
            )
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
        flash_attention = device_map is None and flash_usable(device or "cpu", dtype)
        model = model_class(shell, flash_attention=flash_attention, decoder_follows=True)
    bits = 4 if load_in_4bit else 8 if load_in_8bit else None
    # Before adapters are put on the layers: PEFT has layers of its own for quantised weights.
    quantise = partial(quantise_decoder, model, bits=bits, compute_dtype=dtype, device=device) if bits else None
    restore(model, folder, after_weights=quantise)
    if device_map is not None:
        place(model, device_map)
    else:
        torch.nn.Module.to(model, device or "cpu")
    return model.eval()


def take_arguments(path: str | Path, kwargs: dict[str, Any]) -> str | Path:
    """Takes out of ``kwargs`` what transformers' `from_pretrained` knows beside the arguments of `load_model`.

    Returns:
        The model path, with the revision where one is asked for.

    Raises:
        CheckpointError: A revision is asked for of a folder.
        TypeError: An argument that is not taken.
    """
    if (revision := kwargs.pop("revision", None)) is not None:
        if Path(path).expanduser().is_dir():
            raise CheckpointError(f"{str(path)!r} is a folder, which has no revision {revision!r}")
        path = f"{path}@{revision}"
    # The Auto classes hand over the configuration that they read; it is read again, strictly.
    config = kwargs.pop("config", None)
    if config is not None and getattr(config, "model", None) != read_config(resolve_model_path(path))["model"]:
        raise TypeError("from_pretrained takes the checkpoint's own configuration; change it there")
    kwargs.pop("adapter_kwargs", None)  # always handed over by the Auto classes
    for key in ("kernel_config", "trust_remote_code"):
        if kwargs.pop(key, None):
            raise TypeError(f"from_pretrained takes no {key!r}")
    return path
