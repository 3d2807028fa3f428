"""The component under test at work in a whole, tiny model: messages, processor, batch, forward pass.

Shapes: B media, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from speechlmm_core.config import ModelConfig
from speechlmm_core.media.medium import Medium
from speechlmm_core.testing.composite import new_model, tiny_model_config

TRANSCRIPTS = ("good day", "yes", "so be it")


class Pass(NamedTuple):
    """A forward pass in training mode."""

    model: Any
    batch: dict[str, Any]
    output: Any


def run_in_model(
    towers: Mapping[str, Any],
    media: Mapping[str, Sequence[Medium]],
    *,
    dtype: torch.dtype = torch.float32,
    packed: bool = False,
) -> Pass:
    """Runs a model on one conversation for each medium, every medium with its transcript.

    Args:
        towers: Keys of a `ModelConfig`.
        media: Media by input; the same number for each. None for conversations of text.
        dtype: Type of the parameters.
        packed: Whether all conversations stand in one row.
    """
    from speechlmm_core.processor.processor import SpeechLMMProcessor

    with tiny_model_config(towers) as config, media_in_items(config), torch.random.fork_rng(devices=[]):
        model = new_model(config).to(dtype).train()
        processor = SpeechLMMProcessor.from_config(config)
        samples = [processor.sample(messages, with_answer=True) for messages in conversations(media)]
        batch = processor.collate(samples, packed=packed)
        torch.manual_seed(0)
        return Pass(model, batch, model(**batch))


def conversations(media: Mapping[str, Sequence[Medium]]) -> list[list[dict[str, Any]]]:
    """A conversation for each medium of every input; of text where there are none."""
    found: list[list[dict[str, Any]]] = []
    for number in range(max((len(one) for one in media.values()), default=2)):
        transcript = TRANSCRIPTS[number % len(TRANSCRIPTS)]
        items = [{"type": name, "medium": one[number], "transcript": transcript} for name, one in media.items()]
        question = [*items, {"type": "text", "text": "Write it down."}]
        found.append([{"role": "user", "content": question}, {"role": "assistant", "content": transcript}])
    return found


@contextmanager
def media_in_items(config: ModelConfig) -> Iterator[None]:
    """Within the block, the encoders take a content item's `medium` for what they would load."""
    with ExitStack() as stack:
        for cls in {type(towers.encoder) for towers in config.inputs.values()}:
            stack.enter_context(patch.object(cls, "load", lambda self, item: item["medium"]))
        yield


def assert_learns(component: Any, loss: torch.Tensor, what: str, *, retain: bool = False) -> None:
    """Asserts that a loss is finite and that a finite gradient other than zero flows from it into a component.

    A component without trainable parameters only has to leave the loss finite.
    """
    assert bool(loss.isfinite()), f"{what} is {float(loss.detach())}"
    component.zero_grad()
    trained = {name: value for name, value in component.named_parameters() if value.requires_grad}
    assert loss.requires_grad or not trained, f"{what} is detached"
    if not loss.requires_grad:
        return
    loss.backward(retain_graph=retain)
    gradients = {name: value.grad for name, value in trained.items() if value.grad is not None}
    wild = [name for name, value in gradients.items() if not value.isfinite().all()]
    assert not wild, f"the gradient of {what} for {wild[:3]} is not finite"
    assert not trained or any(bool(value.any()) for value in gradients.values()), f"{what} gives no gradient"
