"""The labels of a CTC head. Imports no torch."""

from __future__ import annotations

from typing import Literal

Vocabulary = Literal["text_decoder", "characters"]


def num_labels(vocabulary: Vocabulary, characters: str, vocab_size: int) -> int:
    """Rows of a CTC head, the blank included."""
    return 1 + (vocab_size if vocabulary == "text_decoder" else len(characters))


def blank_label(vocabulary: Vocabulary, labels: int) -> int:
    """The blank's row of a head: the last one after tokens, so that ids need no shift, and 0 before characters."""
    return labels - 1 if vocabulary == "text_decoder" else 0
