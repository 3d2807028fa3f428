"""Quantising a language model's linear layers with bitsandbytes, after its weights are loaded."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from speechlmm_core.errors import MissingDependencyError

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM

_REPACKS = "support_avx512bf16_for_cpu"
"""Attribute of a 4-bit layer that lets it repack its weights for inference on some CPUs, which no gradient passes."""


def require_bitsandbytes() -> None:
    """Checks that bitsandbytes is installed.

    Raises:
        MissingDependencyError: It is not.
    """
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            "loading in 4 or 8 bits needs bitsandbytes, which is not installed: pip install 'speechlmm-core[quant]' "
            "(in a clone: uv sync --extra quant)"
        )


def quantise_decoder(
    model: SpeechLMM,
    *,
    bits: Literal[4, 8],
    compute_dtype: torch.dtype,
    device: torch.device | str | None = None,
    gradients: bool = False,
) -> None:
    """Quantises the linear layers of a model's language model, but its head; they are frozen from then on.

    Args:
        model: The model, with its weights, on the CPU.
        bits: See `quantise`.
        compute_dtype: Type in which products are computed.
        device: Where they are quantised, and the language model is afterwards; None for the CPU.
        gradients: Whether gradients will pass through them.
    """
    decoder = model.text_decoder.model
    quantise(decoder, bits=bits, compute_dtype=compute_dtype)
    nn.Module.to(decoder, device or "cpu")
    for layer in decoder.modules():
        if gradients and hasattr(layer, _REPACKS):
            setattr(layer, _REPACKS, False)
    model.quantised_modules = ("text_decoder.model",)


def quantised_weights(model: SpeechLMM) -> set[str]:
    """Names of the weights that `quantise_decoder` would quantise."""
    return {f"text_decoder.model.{name}.weight" for name, _ in _linear_layers(model.text_decoder.model)}


def _linear_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [(name, one) for name, one in model.named_modules() if isinstance(one, nn.Linear) and one is not head]


def quantise(model: nn.Module, *, bits: Literal[4, 8], compute_dtype: torch.dtype) -> None:
    """Replaces every linear layer but the head; the weights are quantised when they move to their device.

    Args:
        model: The language model, in `compute_dtype`, on the CPU.
        bits: 4 (NF4; Dettmers et al., 2023, arXiv 2305.14314) or 8 (LLM.int8; Dettmers et al., 2022, arXiv 2208.07339).
        compute_dtype: Type in which products are computed.
    """
    import bitsandbytes as bnb

    for name, layer in _linear_layers(model):
        bias = layer.bias is not None
        new: Any
        if bits == 4:
            new = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, bias, compute_dtype=compute_dtype, quant_type="nf4"
            )
            new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        else:
            new = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, bias, has_fp16_weights=False)
            new.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        if bias:
            new.bias = nn.Parameter(layer.bias.data, requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
