"""Whether the losses' logits are those of the model itself.

Shapes: D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from speechlmm_core.errors import ConfigError
from speechlmm_core.losses.logits import logit_transform

if TYPE_CHECKING:
    from speechlmm_core.text_decoder.decoder import CausalLMDecoder

PROBE_LOGIT = 100.0
"""Largest logit of the probe."""


def check_logits(decoder: CausalLMDecoder) -> None:
    """Compares the logits that the losses are computed from with the model's own, on two hidden states.

    A family may change its logits in a way of its own. The network's body is left out, so that this costs no more
    than the head; on the meta device there is nothing to compare.

    Raises:
        ConfigError: They differ.
    """
    weight = decoder.output_weight.detach()
    if weight.is_meta or weight.numel() == 0:
        return
    # Own random numbers: the caller's must not move. Large ones, for a cap hardly changes small logits.
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 2, weight.shape[1], generator=generator, device="cpu").to(weight)  # (1, 2, D)
    hidden = hidden * (PROBE_LOGIT / (hidden @ weight.T).abs().max().clamp(min=1e-6))
    body = decoder.model.get_decoder()
    with torch.no_grad(), _replaced(body, lambda *_, **__: _BodyOutput(last_hidden_state=hidden)):
        try:
            stock = decoder.model(inputs_embeds=hidden, use_cache=False).logits.float()
        except Exception as exc:  # whatever a family's forward asks of its body
            raise ConfigError(
                f"cannot tell how the text decoder {decoder.config.model_type!r} makes its logits ({exc}); choose "
                "another model"
            ) from exc
    ours = logit_transform(decoder)
    logits = (hidden @ weight.T).float() * ours.scale  # (1, 2, V)
    if ours.softcap is not None:
        logits = ours.softcap * torch.tanh(logits / ours.softcap)
    if stock.shape != logits.shape or float((stock - logits).norm()) > 0.02 * float(logits.norm()):
        raise ConfigError(
            f"text decoder {decoder.config.model_type!r} changes its logits in a way that the chunked loss does not "
            "know; choose another model"
        )


class _BodyOutput(BaseModelOutput):
    """Hidden states, and nothing of all else that a family's body may put out."""

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
