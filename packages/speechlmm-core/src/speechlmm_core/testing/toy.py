"""Stand-ins for the parts that a component under test needs beside it.

Shapes: R rows, N tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from speechlmm_core.interfaces.modules import TextDecoder


class ToyTokenizer:
    """A tokenizer of characters, for objectives that encode transcripts."""

    pad_token_id = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        """An id for every character; 0 stays free."""
        return [1 + ord(character) % (self.vocab_size - 1) for character in text]


class ToyTextDecoder(TextDecoder):
    """An embedding table and a head, for objectives that read them."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {"embedding": nn.Embedding(vocab_size, hidden_size), "head": nn.Linear(hidden_size, vocab_size, bias=False)}
        )

    def embed(self, input_ids: Tensor) -> Tensor:
        """Input embeddings (R, N, D)."""
        return self.model["embedding"](input_ids)  # (R, N, D)

    @property
    def embedding_weight(self) -> Tensor:
        """(V, D) the embedding table."""
        return self.model["embedding"].weight

    @property
    def output_weight(self) -> Tensor:
        """(V, D) the head."""
        return self.model["head"].weight

    def forward(self, inputs_embeds: Tensor, **kwargs: Any) -> Tensor:
        """Hidden states (R, N, D): a function of each position alone."""
        return torch.tanh(inputs_embeds)
