"""The interface of a training objective's configuration. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from speechlmm_core.registry import ComponentConfig, Registry

if TYPE_CHECKING:
    from speechlmm_core.chat.tokenizer import ChatTokenizer
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_core.interfaces.modules import Objective

Schedule = list[tuple[float, float]]


def _points_rise(weight: float | Schedule) -> float | Schedule:
    if isinstance(weight, list):
        progress = [point[0] for point in weight]
        if not weight or progress != sorted(progress) or any(not 0 <= p <= 1 for p in progress):
            raise ValueError(f"expected points [progress, weight] with progress rising in 0..1, got {weight!r}")
        if any(w < 0 for _, w in weight):
            raise ValueError(f"a weight may not be negative, got {weight!r}")
    return weight


Weight = Annotated[Annotated[float, Field(ge=0)] | Schedule, AfterValidator(_points_rise)]
"""Weight of a loss, or points ``[progress, weight]`` (progress from 0 to 1) that are joined by straight lines."""


class ObjectiveConfig(ComponentConfig, ABC):
    """Configuration of one term of the training loss."""

    weight: Weight = 1.0
    """Weight of the term, or points ``[progress, weight]`` (progress from 0 to 1) that are joined by straight lines."""

    @property
    @abstractmethod
    def stages(self) -> tuple[str, ...]:
        """Names of the stage outputs that the objective reads (`audio_encoder`, `text_decoder`, …)."""

    @property
    def needs_transcript(self) -> bool:
        """Whether the objective compares a medium with its transcript."""
        return False

    def encode_transcript(self, transcript: str, tokenizer: ChatTokenizer) -> list[int]:
        """Target ids for a medium's transcript (data worker; only where `needs_transcript`)."""
        return []

    def min_frames(self, target: list[int]) -> int:
        """Frames that the target needs at least; a medium with fewer is left out of this objective and counted."""
        return 0

    @property
    def accepts_empty_targets(self) -> bool:
        """Whether an empty target (the transcript of silence) is one to learn from, like any other."""
        return False

    @abstractmethod
    def build(self, ctx: BuildContext) -> Objective:
        """The module, with whatever parameters the objective owns."""


def weight_at(weight: float | Schedule, progress: float) -> float:
    """The weight at a point of the training's progress (0 to 1)."""
    if not isinstance(weight, list):
        return weight
    if progress <= weight[0][0]:
        return weight[0][1]
    for (left, low), (right, high) in pairwise(weight):
        if progress < right:
            return low + (high - low) * (progress - left) / (right - left)
    return weight[-1][1]


def can_weigh(weight: float | Schedule) -> bool:
    """Whether a weight is ever above zero."""
    return any(value > 0 for _, value in weight) if isinstance(weight, list) else weight > 0


objectives: Registry[ObjectiveConfig] = Registry("objective", ObjectiveConfig)
AnyObjective = Annotated[ObjectiveConfig, objectives]
