"""Penalties on repeated tokens that see text only.

A prompt's media stand on positions that hold the padding token, and so does the padding on the left of a batch's
shorter rows. Where that token also ends an answer, transformers' own processors would penalise the end of it, and by
more in one batch than in another.

Shapes: B rows, N positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

NEUTRAL: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""The options that are taken over, with the values that ask for nothing."""


class TextOnly(LogitsProcessor):
    """Shows other processors the text of each row alone.

    N-grams may reach over the place of a medium, as if its text were written without it.

    Args:
        processors: The processors.
        text: (B, N) bool, true where the prompt holds a token of text.
    """

    def __init__(self, processors: LogitsProcessorList, text: Tensor) -> None:
        self.processors = processors
        self.text = text

    def select(self, rows: Tensor) -> None:
        """Goes on with some of the batch's rows alone."""
        self.text = self.text[rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, V) scores after the processors; B may be a multiple of the prompt's rows (beams)."""
        prompt = self.text.shape[1]
        text = self.text.repeat_interleave(len(input_ids) // len(self.text), dim=0)  # (B, N)
        rows: list[Tensor] = []
        for ids, wanted, score in zip(input_ids, text, scores, strict=True):
            own = torch.cat([ids[:prompt][wanted], ids[prompt:]])[None]
            rows.append(self.processors(own, score[None]))  # pyright: ignore[reportArgumentType]
        return torch.cat(rows)  # (B, V)


def text_penalties(kwargs: dict[str, Any], defaults: GenerationConfig, text: Tensor) -> dict[str, Any]:
    """Generation options with the penalties on repetition replaced by ones that see text only.

    Args:
        kwargs: Options as `generate` takes them.
        defaults: The model's own options.
        text: (B, N) bool, true where the prompt holds a token of text.
    """
    given: GenerationConfig = kwargs.get("generation_config") or defaults
    asked = {key: kwargs.get(key, getattr(given, key, None)) or neutral for key, neutral in NEUTRAL.items()}
    if asked == NEUTRAL:
        return kwargs
    processors = LogitsProcessorList()
    if asked["repetition_penalty"] != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(asked["repetition_penalty"])))
    if asked["no_repeat_ngram_size"] > 0:
        processors.append(NoRepeatNGramLogitsProcessor(asked["no_repeat_ngram_size"]))
    others = kwargs.get("logits_processor") or []
    return {**kwargs, **NEUTRAL, "logits_processor": LogitsProcessorList([TextOnly(processors, text), *others])}
