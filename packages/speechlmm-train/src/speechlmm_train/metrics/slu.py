"""Accuracy of intents and F1 of slots, from the line that the task has a model write.

Shapes: N answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.interfaces.metric import Answer, MetricConfig, Scale
from speechlmm_core.tasks.slu.frame import parse
from speechlmm_train.metrics.normalise import normalise


class IntentAccuracyConfig(MetricConfig):
    """Share of answers whose intent is a reference's; the answer is a line of intent and slots, or the intent alone."""

    type: Literal["intent_accuracy"] = "intent_accuracy"
    higher_is_better: ClassVar[bool] = True
    scale: ClassVar[Scale] = "fraction"

    @property
    def signature(self) -> str:
        """How intents are compared."""
        return "intent_accuracy|case:lc"

    def statistics(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """Whether it is right, and the number of each answer (N, 2)."""
        table = np.ones((len(answers), 2))
        for row, answer in enumerate(answers):
            table[row, 0] = _intent(answer.text) in {_intent(reference) for reference in answer.references}
        return table

    def score(self, total: NDArray[np.float64]) -> dict[str, float]:
        """The share, a fraction of 1."""
        share = float(total[0] / total[1]) if total[1] else 0.0
        return {"intent_accuracy": share, "intent_accuracy_answers": float(total[1])}


class SlotF1Config(MetricConfig):
    """Micro F1 over (slot, value); values are compared without case and punctuation. No line, no slots."""

    type: Literal["slot_f1"] = "slot_f1"
    higher_is_better: ClassVar[bool] = True
    scale: ClassVar[Scale] = "fraction"

    @property
    def signature(self) -> str:
        """How slots are compared."""
        return "slot_f1|average:micro|norm:basic"

    def statistics(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """Slots that are right, that are wrong, and that are missing (N, 3); the nearest reference counts."""
        table = np.zeros((len(answers), 3))
        for row, answer in enumerate(answers):
            given = _slots(answer.text)
            counts: list[tuple[int, int, int]] = []
            for reference in answer.references:
                wanted = _slots(reference)
                right = (given & wanted).total()
                counts.append((right, given.total() - right, wanted.total() - right))
            table[row] = min(counts, key=lambda count: (count[1] + count[2], -count[0]))
        return table

    def score(self, total: NDArray[np.float64]) -> dict[str, float]:
        """F1, precision and recall as fractions of 1, and the counts; 1 where there is no slot and none was given."""
        right, wrong, missing = (float(count) for count in total)
        return {
            "slot_f1": _share(2 * right, 2 * right + wrong + missing),
            "slot_f1_precision": _share(right, right + wrong),
            "slot_f1_recall": _share(right, right + missing),
            "slot_f1_right": right,
            "slot_f1_wrong": wrong,
            "slot_f1_missing": missing,
        }


def _intent(text: str) -> str:
    frame = parse(text)
    return (text if frame is None else frame.intent).strip().casefold()


def _slots(text: str) -> Counter[tuple[str, str]]:
    frame = parse(text)
    return Counter(() if frame is None else ((kind.casefold(), normalise(value)) for kind, value in frame.slots))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
