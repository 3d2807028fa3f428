"""Answers beside their references, word by word. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from speechlmm_train.metrics.normalise import normalise, words

Kind = Literal["equal", "substitute", "delete", "insert"]


class Piece(NamedTuple):
    """A word of the reference beside one of the answer; one of them is empty where there is none."""

    kind: Kind
    reference: str
    answer: str


def align(reference: str, answer: str) -> list[Piece]:
    """Aligns words; case and punctuation are shown but do not count."""
    said, heard = _tokens(reference), _tokens(answer)
    if not said:
        return [Piece("insert", "", word) for word, _ in heard]
    if not heard:
        return [Piece("delete", word, "") for word, _ in said]
    import jiwer

    output = jiwer.process_words(" ".join(key for _, key in said), " ".join(key for _, key in heard))
    pieces: list[Piece] = []
    for chunk in output.alignments[0]:
        left = [word for word, _ in said[chunk.ref_start_idx : chunk.ref_end_idx]]
        right = [word for word, _ in heard[chunk.hyp_start_idx : chunk.hyp_end_idx]]
        count = max(len(left), len(right))
        left += [""] * (count - len(left))
        right += [""] * (count - len(right))
        kind: Kind = chunk.type  # pyright: ignore[reportAssignmentType]  # jiwer declares a plain string
        pieces += [Piece(kind, one, other) for one, other in zip(left, right, strict=True)]
    return pieces


def as_text(pieces: Sequence[Piece]) -> str:
    """One line of text: `[-left out-]`, `{+added+}`, and both for a word in place of another."""
    marked = {
        "equal": lambda piece: piece.answer,
        "delete": lambda piece: f"[-{piece.reference}-]",
        "insert": lambda piece: f"{{+{piece.answer}+}}",
        "substitute": lambda piece: f"[-{piece.reference}-]{{+{piece.answer}+}}",
    }
    return " ".join(marked[piece.kind](piece) for piece in pieces)


def _tokens(text: str) -> list[tuple[str, str]]:
    """Words with what they are compared by; those of punctuation alone are left out."""
    found = [(word, normalise(word).replace(" ", "_")) for word in words(text).split()]
    return [(word, key) for word, key in found if key]
