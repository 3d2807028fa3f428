"""Exact match and F1 over words of short answers, as SQuAD is scored; for other languages as MLQA is.

Papers: P. Rajpurkar et al., "SQuAD", EMNLP 2016 (arXiv:1606.05250); P. Lewis et al., "MLQA", ACL 2020
(arXiv:1910.07475).

Shapes: N answers.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.interfaces.metric import Answer, MetricConfig, Scale
from speechlmm_train.metrics.normalise import base_language, words

_ARTICLES = {
    "en": "a an the",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "es": "un una unos unas el la los las",
    "fr": "un une des le la les du",
    "it": "un uno una il lo la i gli le",
}
_ELIDED = re.compile(r"\b(?:l|d|un|dell|all|dall|nell|sull)['\u2019](?=\w)")
_PATTERNS = {code: re.compile(rf"\b(?:{'|'.join(listed.split())})\b") for code, listed in _ARTICLES.items()}


def short_answer(text: str, language: str | None = None) -> str:
    """Lower case, without punctuation, articles and superfluous space; an unknown language is taken for English."""
    code = base_language(language) or "en"
    text = text.lower()
    if code == "en":
        text = "".join(character for character in text if character not in string.punctuation)
    else:
        text = _ELIDED.sub("", text) if code in ("fr", "it") else text
        text = "".join(c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    if code in _PATTERNS:
        text = _PATTERNS[code].sub(" ", text)
    return " ".join(words(text).split())


class _AnswerConfig(MetricConfig):
    higher_is_better: ClassVar[bool] = True
    scale: ClassVar[Scale] = "fraction"

    @property
    def signature(self) -> str:
        """The rule of normalisation."""
        return f"{self.type}|norm:squad"

    def statistics(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """Score and number of each answer (N, 2); of several references, the best counts."""
        table = np.ones((len(answers), 2))
        for row, answer in enumerate(answers):
            given = short_answer(answer.text, answer.language)
            table[row, 0] = max(
                self._compare(given, short_answer(reference, answer.language)) for reference in answer.references
            )
        return table

    def score(self, total: NDArray[np.float64]) -> dict[str, float]:
        """The mean, a fraction of 1."""
        return {
            self.type: float(total[0] / total[1]) if total[1] else 0.0,
            f"{self.type}_answers": float(total[1]),
        }

    def _compare(self, given: str, expected: str) -> float:
        raise TypeError("one of two ways to compare")


class ExactMatchConfig(_AnswerConfig):
    """Share of answers that equal a reference."""

    type: Literal["exact_match"] = "exact_match"

    def _compare(self, given: str, expected: str) -> float:
        return float(given == expected)


class TokenF1Config(_AnswerConfig):
    """Harmonic mean of precision and recall over the words of an answer, its mean over the answers."""

    type: Literal["token_f1"] = "token_f1"

    def _compare(self, given: str, expected: str) -> float:
        had, wanted = given.split(), expected.split()
        if not had or not wanted:  # nothing to be said, and nothing said
            return float(had == wanted)
        shared = sum((Counter(had) & Counter(wanted)).values())
        return 2 * shared / (len(had) + len(wanted))
