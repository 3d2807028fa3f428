"""BLEU and chrF of a corpus, from sacreBLEU's sufficient statistics.

Papers: K. Papineni et al., "BLEU", ACL 2002; M. Popović, "chrF", WMT 2015; M. Post, "A call for clarity in reporting
BLEU scores", WMT 2018 (arXiv:1804.08771). Source: sacreBLEU (Apache-2.0).

Shapes: N answers, S statistics.
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from speechlmm_core.errors import MissingDependencyError
from speechlmm_core.interfaces.metric import Answer, MetricConfig, Scale
from speechlmm_train.metrics.normalise import base_language

Tokenizer = Literal["auto", "13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"]
_CHINESE = frozenset({"zh", "yue"})
_CHARACTERS = frozenset({"ja", "ko", "th", "lo", "my", "km", "bo"})
_NEEDS = {"ja-mecab": ("MeCab", "sacrebleu[ja]"), "ko-mecab": ("mecab_ko", "sacrebleu[ko]")}


class _SacreBLEUConfig(MetricConfig):
    higher_is_better: ClassVar[bool] = True
    scale: ClassVar[Scale] = "hundred"
    names: ClassVar[tuple[str, ...]] = ()
    """What the statistics count, by column."""

    @abstractmethod
    def scorer(self, language: str | None) -> Any:
        """SacreBLEU's metric for answers in a language."""

    @property
    def signature(self) -> str:
        """SacreBLEU's signature for one reference."""
        return self.signature_for([Answer("", ("",))])

    def signature_for(self, answers: Sequence[Answer]) -> str:
        """SacreBLEU's signature for these answers: their number of references, and the tokenizer of their language."""
        counts = sorted({len(answer.references) for answer in answers}) or [1]
        found: list[str] = []
        for language in sorted({base_language(answer.language) or "" for answer in answers}):
            scorer = self.scorer(language or None)
            rows = counts if len(counts) == 1 else counts[:: len(counts) - 1]
            texts = [[""] * count + [None] * (max(rows) - count) for count in rows]
            scorer.corpus_score([""] * len(rows), list(zip(*texts, strict=True)))
            found.append(str(scorer.get_signature()))
        return " / ".join(dict.fromkeys(found))

    def statistics(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """SacreBLEU's statistics of each answer (N, S).

        Raises:
            MissingDependencyError: The tokenizer is not installed.
        """
        table = np.zeros((len(answers), len(self.names)))
        by_language: dict[str | None, list[int]] = {}
        for row, answer in enumerate(answers):
            by_language.setdefault(base_language(answer.language), []).append(row)
        for language, rows in by_language.items():
            most = max(len(answers[row].references) for row in rows)
            padded = [[*answers[row].references, *[None] * (most - len(answers[row].references))] for row in rows]
            # What sacreBLEU's own significance tests are computed from.
            table[rows] = self.scorer(language)._extract_corpus_statistics(
                [answers[row].text for row in rows], list(zip(*padded, strict=True))
            )
        return table

    def score(self, total: NDArray[np.float64]) -> dict[str, float]:
        """The value from 0 to 100, with its counts."""
        counts = [round(number) for number in total.tolist()]
        value = self.scorer("en")._compute_score_from_stats(counts)
        named = dict(zip(self.names, map(float, counts), strict=True))
        return {self.type: float(value.score), **{f"{self.type}_{name}": count for name, count in named.items()}}


class BLEUConfig(_SacreBLEUConfig):
    """BLEU of the corpus."""

    type: Literal["bleu"] = "bleu"
    tokenize: Tokenizer = "auto"
    """sacreBLEU's tokenizer. `auto` goes by the answers' language and needs nothing else installed: `zh` for Chinese,
    characters for Japanese, Korean and others of Asia, else `13a`; `ja-mecab` and `ko-mecab` have to be asked for."""
    lowercase: bool = False
    """Whether case is left out of account."""
    names: ClassVar[tuple[str, ...]] = (
        *("length", "reference_length"),
        *(f"correct_{n}" for n in range(1, 5)),
        *(f"total_{n}" for n in range(1, 5)),
    )

    def scorer(self, language: str | None) -> Any:
        """SacreBLEU's metric for answers in a language.

        Raises:
            MissingDependencyError: The tokenizer is not installed.
        """
        from sacrebleu.metrics.bleu import BLEU

        name = self.tokenize
        if name == "auto":
            plain = base_language(language) or ""
            name = "char" if plain in _CHARACTERS else "zh" if plain in _CHINESE else "13a"
        module, extra = _NEEDS.get(name, ("", ""))
        if module and importlib.util.find_spec(module) is None:
            raise MissingDependencyError(
                f"metric 'bleu' was asked for with the tokenizer {name!r}, which is not installed: "
                f"pip install '{extra}', or leave it out to take characters"
            )
        return BLEU(tokenize=name, lowercase=self.lowercase, force=True)


class ChrFConfig(_SacreBLEUConfig):
    """Character n-gram F-score of the corpus; chrF++ with `word_order=2`."""

    type: Literal["chrf"] = "chrf"
    word_order: Annotated[int, Field(ge=0, le=2)] = 0
    """Longest n-grams of words that count beside those of characters."""
    lowercase: bool = False
    """Whether case is left out of account."""

    def scorer(self, language: str | None) -> Any:
        """SacreBLEU's metric."""
        from sacrebleu.metrics.chrf import CHRF

        return CHRF(word_order=self.word_order, lowercase=self.lowercase)

    @property
    def names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # depends on word_order
        """What the statistics count, by column."""
        kinds = [f"char_{n}" for n in range(1, 7)] + [f"word_{n}" for n in range(1, self.word_order + 1)]
        return tuple(f"{what}_{kind}" for kind in kinds for what in ("answer", "reference", "matched"))
