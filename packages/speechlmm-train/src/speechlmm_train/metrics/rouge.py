"""ROUGE-1, ROUGE-2 and ROUGE-L: n-grams and the longest subsequence that a summary shares with its reference.

Paper: C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL workshop 2004. Source: torchmetrics
(Apache-2.0).

Shapes: N answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.interfaces.metric import Answer, MetricConfig, Scale
from speechlmm_train.metrics.normalise import base_language, normalise, words

_KEYS = ("rouge1", "rouge2", "rougeL")


class ROUGEConfig(MetricConfig):
    """F-measures of ROUGE, means over the answers, without stemming; `rouge` is ROUGE-L."""

    type: Literal["rouge"] = "rouge"
    higher_is_better: ClassVar[bool] = True
    scale: ClassVar[Scale] = "fraction"

    @property
    def signature(self) -> str:
        """The library, and how words are told apart."""
        return f"rouge|words:by language|stemmer:no|torchmetrics:{version('torchmetrics')}"

    def statistics(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """ROUGE-1, ROUGE-2, ROUGE-L and the number of each answer (N, 4); of several references, the best counts."""
        from torchmetrics.functional.text.rouge import rouge_score

        table = np.ones((len(answers), 4))
        for row, answer in enumerate(answers):
            found = rouge_score(
                [answer.text], [list(answer.references)], rouge_keys=_KEYS, **_splitting(answer.language)
            )
            table[row, :3] = [float(found[f"{key}_fmeasure"]) for key in _KEYS]
        return table

    def score(self, total: NDArray[np.float64]) -> dict[str, float]:
        """The means, ROUGE-L first."""
        count = float(total[3])
        one, two, longest = (float(value) / count if count else 0.0 for value in total[:3])
        return {"rouge": longest, "rouge1": one, "rouge2": two, "rougeL": longest, "rouge_answers": count}


def _splitting(language: str | None) -> dict[str, Any]:
    """The library's own rule knows a to z only."""
    if base_language(language) in (None, "en"):
        return {}
    return {"normalizer": lambda text: words(normalise(text)), "tokenizer": str.split}
