"""Word and character error rates of a corpus: all errors over all reference words or characters.

Source: the Levenshtein alignment of jiwer (Apache-2.0).

Shapes: N answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.interfaces.metric import Answer, MetricConfig, Scale
from speechlmm_train.metrics.normalise import Normaliser, normaliser_for, without_loose_spaces, words

_NAMES = {"substitution": 0, "deletion": 1, "insertion": 2}
_COLUMNS = {"substitute": 0, "delete": 1, "insert": 2}


class _ErrorRateConfig(MetricConfig):
    normaliser: Normaliser = "basic"
    """`basic` leaves case and punctuation out, `whisper` does as the Whisper models are scored, `none` nothing."""

    scale: ClassVar[Scale] = "fraction"
    unit: ClassVar[str] = ""

    @property
    def signature(self) -> str:
        """The normaliser, and the libraries with their versions."""
        used = ["jiwer", *(["whisper-normalizer"] if self.normaliser == "whisper" else [])]
        return "|".join([self.type, f"norm:{self.normaliser}", *(f"{name}:{version(name)}" for name in used)])

    def statistics(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """Substitutions, deletions, insertions and reference units (N, 4); an empty reference makes insertions.

        Of several references, the one with the lowest rate counts.
        """
        rows: list[int] = []
        pairs: list[tuple[str, str]] = []
        for row, answer in enumerate(answers):
            clean = normaliser_for(self.normaliser, answer.language)
            given = self.prepared(clean(answer.text))
            for reference in answer.references:
                rows.append(row)
                pairs.append((self.prepared(clean(reference)), given))
        counts = self._counts(pairs)
        best = np.zeros((len(answers), 4))
        rates = np.full(len(answers), np.inf)
        for row, count in zip(rows, counts, strict=True):
            rate = count[:3].sum() / max(count[3], 1)
            if rate < rates[row]:
                best[row], rates[row] = count, rate
        return best

    def score(self, total: NDArray[np.float64]) -> dict[str, float]:
        """The rate over the corpus with its counts; a corpus without a word that is answered in words is all wrong."""
        wrong, length = float(total[:3].sum()), float(total[3])
        rate = wrong / length if length else float(wrong > 0)
        counts = {f"{self.type}_{name}s": float(total[at]) for name, at in _NAMES.items()}
        return {self.type: rate, f"{self.type}_{self.unit}": length, **counts}

    def prepared(self, text: str) -> str:
        """Normalised text as it is aligned."""
        return text

    def _counts(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        counts = np.zeros((len(pairs), 4))
        filled = [row for row, (reference, _) in enumerate(pairs) if reference.strip()]
        for row in set(range(len(pairs))).difference(filled):  # jiwer refuses empty references
            counts[row, 2] = self._length(pairs[row][1])
        if filled:
            output = self._align([pairs[row][0] for row in filled], [pairs[row][1] for row in filled])
            for row, chunks in zip(filled, output.alignments, strict=True):
                for chunk in chunks:
                    said, heard = chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
                    counts[row, 3] += said
                    if chunk.type in _COLUMNS:
                        counts[row, _COLUMNS[chunk.type]] += max(said, heard)
        return counts

    def _length(self, text: str) -> int:
        raise TypeError("a rate of words or of characters")

    def _align(self, references: list[str], hypotheses: list[str]) -> Any:
        raise TypeError("a rate of words or of characters")


class WERConfig(_ErrorRateConfig):
    """Word error rate; each character of Chinese, Japanese, Thai and other scripts without spaces is a word."""

    type: Literal["wer"] = "wer"
    unit: ClassVar[str] = "words"

    def prepared(self, text: str) -> str:
        """Normalised text as it is aligned."""
        return text if self.normaliser == "none" else words(text)

    def _length(self, text: str) -> int:
        return len(text.split())

    def _align(self, references: list[str], hypotheses: list[str]) -> Any:
        import jiwer

        return jiwer.process_words(references, hypotheses)


class CERConfig(_ErrorRateConfig):
    """Character error rate, spaces included, except in scripts that are written without them."""

    type: Literal["cer"] = "cer"
    unit: ClassVar[str] = "characters"

    def prepared(self, text: str) -> str:
        """Normalised text as it is aligned."""
        return text if self.normaliser == "none" else without_loose_spaces(text)

    def _length(self, text: str) -> int:
        return len(text.strip())

    def _align(self, references: list[str], hypotheses: list[str]) -> Any:
        import jiwer

        return jiwer.process_characters(references, hypotheses)
