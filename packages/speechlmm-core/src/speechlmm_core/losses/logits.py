"""What a family of language models does to its logits beside the product with the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.modules import TextDecoder


@dataclass(frozen=True)
class LogitTransform:
    """``softcap * tanh(scale * z / softcap)`` of a logit z."""

    scale: float = 1.0
    softcap: float | None = None


def logit_transform(text_decoder: TextDecoder) -> LogitTransform:
    """The scale and the cap that the decoder's configuration asks for.

    Raises:
        ConfigError: Its head adds a bias, which the chunked loss does not know.
    """
    model: Any = getattr(text_decoder, "model", None)
    config: Any = getattr(model, "config", None)
    if config is None:
        return LogitTransform()
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if getattr(head, "bias", None) is not None:
        raise ConfigError(
            f"the language-model head of {type(model).__name__} has a bias, which the loss does not support; "
            "choose a family whose head is a plain matrix"
        )
    text = config.get_text_config()
    scale = 1.0
    # Cohere multiplies its logits; Granite and its relatives divide them.
    if isinstance(getattr(text, "logit_scale", None), int | float):
        scale *= text.logit_scale
    if isinstance(getattr(text, "logits_scaling", None), int | float):
        scale /= text.logits_scaling
    cap = getattr(text, "final_logit_softcapping", None)
    return LogitTransform(scale, float(cap) if cap else None)
