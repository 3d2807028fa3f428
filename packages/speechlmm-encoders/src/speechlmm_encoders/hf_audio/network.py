"""Where the networks of transformers keep their layers, and what is changed about them when they are built."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook


@dataclass(frozen=True)
class Network:
    """Names within a model of transformers."""

    layers: str
    """Its list of layers."""
    norm: str | None
    """The norm after the last layer; None where there is none, or it stands before the first."""


_RELATIVES = ("wav2vec2", "hubert", "unispeech", "unispeech-sat", "wavlm")
_NORMS = {"wav2vec2-conformer": "encoder.layer_norm", "wav2vec2-bert": None, "data2vec-audio": None}
_PARTS = ("moonshine", "speech_to_text", "whisper")


def network_of(numbers: Mapping[str, Any]) -> Network | None:
    """Where the layers of a model are; None for types that are not known so well.

    Args:
        numbers: The fields of its `config.json`.
    """
    model_type = numbers["model_type"]
    if model_type in _PARTS:
        return Network("layers", "layer_norm")
    if model_type in _NORMS:
        return Network("encoder.layers", _NORMS[model_type])
    if model_type in _RELATIVES:
        return Network("encoder.layers", "encoder.layer_norm" if numbers.get("do_stable_layer_norm") else None)
    return None


def take_layerdrop(numbers: Any) -> float:
    """Takes the probability of leaving a layer out from a configuration of transformers, and sets it to zero there.

    Transformers leaves layers out of the graph: ranks that draw apart would wait for each other's gradients, and where
    it is a layer of an adapter the frames would be more than their number says.
    """
    found = [key for key in ("layerdrop", "encoder_layerdrop") if isinstance(getattr(numbers, key, None), float | int)]
    taken = [float(getattr(numbers, key)) for key in found]
    for key in found:
        setattr(numbers, key, 0.0)
    return max(taken, default=0.0)


@contextmanager
def without_weights() -> Iterator[None]:
    """Within the block, modules that this thread builds have buffers with content, and parameters without memory."""
    thread = threading.get_ident()

    def on_meta(_: nn.Module, __: str, parameter: nn.Parameter) -> Any:
        if threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(on_meta)
    try:
        yield
    finally:
        handle.remove()
