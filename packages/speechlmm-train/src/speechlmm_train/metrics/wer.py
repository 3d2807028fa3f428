"""Word and character error rates of a corpus: all errors over all reference words or characters.

Source: the Levenshtein alignment of jiwer (Apache-2.0).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.interfaces.metric import Answer, MetricConfig

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'"})
_NOT_SPOKEN = re.compile(r"[^\w\s']|_")
_LONE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")

_NAMES = {"substitution": 0, "deletion": 1, "insertion": 2}
_COLUMNS = {"substitute": 0, "delete": 1, "insert": 2}


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces; apostrophes inside words stay."""
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_APOSTROPHES)
    return " ".join(_LONE_APOSTROPHE.sub(" ", _NOT_SPOKEN.sub(" ", folded)).split())


class _ErrorRateConfig(MetricConfig):
    normalise: bool = True
    """Whether case and punctuation are left out of account."""

    unit: ClassVar[str] = ""

    def statistics(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """Substitutions, deletions, insertions and reference units (N, 4); an empty reference makes insertions."""
        counts = np.zeros((len(answers), 4))
        filled: list[int] = []
        pairs: list[tuple[str, str]] = []
        for row, answer in enumerate(answers):
            pair = (answer.references[0], answer.text)
            pair = (normalise(pair[0]), normalise(pair[1])) if self.normalise else pair
            if pair[0].strip():
                filled.append(row)
                pairs.append(pair)
            else:  # jiwer refuses empty references
                counts[row, 2] = self._length(pair[1])
        if filled:
            output = self._align([reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs])
            for row, chunks in zip(filled, output.alignments, strict=True):
                for chunk in chunks:
                    said, heard = chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
                    counts[row, 3] += said
                    if chunk.type in _COLUMNS:
                        counts[row, _COLUMNS[chunk.type]] += max(said, heard)
        return counts

    def score(self, total: NDArray[np.float64]) -> dict[str, float]:
        """The rate over the corpus with its counts; a corpus without a word that is answered in words is all wrong."""
        wrong, length = float(total[:3].sum()), float(total[3])
        rate = wrong / length if length else float(wrong > 0)
        counts = {f"{self.type}_{name}s": float(total[at]) for name, at in _NAMES.items()}
        return {self.type: rate, f"{self.type}_{self.unit}": length, **counts}

    def _length(self, text: str) -> int:
        raise TypeError("a rate of words or of characters")

    def _align(self, references: list[str], hypotheses: list[str]) -> Any:
        raise TypeError("a rate of words or of characters")


class WERConfig(_ErrorRateConfig):
    """Word error rate."""

    type: Literal["wer"] = "wer"
    unit: ClassVar[str] = "words"

    def _length(self, text: str) -> int:
        return len(text.split())

    def _align(self, references: list[str], hypotheses: list[str]) -> Any:
        import jiwer

        return jiwer.process_words(references, hypotheses)


class CERConfig(_ErrorRateConfig):
    """Character error rate, spaces included."""

    type: Literal["cer"] = "cer"
    unit: ClassVar[str] = "characters"

    def _length(self, text: str) -> int:
        return len(text)

    def _align(self, references: list[str], hypotheses: list[str]) -> Any:
        import jiwer

        return jiwer.process_characters(references, hypotheses)
