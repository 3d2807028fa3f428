"""Word and character error rates of a corpus: all errors over all reference words or characters.

Source: the Levenshtein alignment of jiwer (Apache-2.0).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from speechlmm_core.interfaces.metric import MetricConfig

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'"})
_NOT_SPOKEN = re.compile(r"[^\w\s']|_")
_LONE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces; apostrophes inside words stay."""
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_APOSTROPHES)
    return " ".join(_LONE_APOSTROPHE.sub(" ", _NOT_SPOKEN.sub(" ", folded)).split())


class _ErrorRateConfig(MetricConfig):
    normalise: bool = True
    """Whether case and punctuation are left out of account."""

    unit: ClassVar[str] = ""

    def compute(self, references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
        """The rate over the corpus with its counts; a reference without words makes every word an insertion."""
        if len(references) != len(hypotheses):
            raise ValueError(f"got {len(references)} references and {len(hypotheses)} hypotheses; expected as many")
        errors = {"substitutions": 0, "deletions": 0, "insertions": 0}
        total = 0
        filled: list[tuple[str, str]] = []
        for reference, hypothesis in zip(references, hypotheses, strict=True):
            pair = (normalise(reference), normalise(hypothesis)) if self.normalise else (reference, hypothesis)
            if not pair[0].strip():  # jiwer refuses empty references
                errors["insertions"] += self._length(pair[1])
            else:
                filled.append(pair)
        if filled:
            output = self._align([reference for reference, _ in filled], [hypothesis for _, hypothesis in filled])
            for name in errors:
                errors[name] += getattr(output, name)
            total = output.hits + output.substitutions + output.deletions
        wrong = sum(errors.values())
        rate = wrong / total if total else float(wrong > 0)
        counts = {f"{self.type}_{name}": float(count) for name, count in errors.items()}
        return {self.type: rate, f"{self.type}_{self.unit}": float(total), **counts}

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
