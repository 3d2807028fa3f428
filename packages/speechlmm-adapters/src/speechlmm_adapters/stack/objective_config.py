"""Configuration of the loss of one stage of a stack. Imports no torch.

It is never written in a configuration file: `StackAdapterConfig.objectives` makes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from speechlmm_adapters.stack.config import StackAdapterConfig
from speechlmm_core.interfaces.objective import AnyObjective, ObjectiveConfig

if TYPE_CHECKING:
    from speechlmm_adapters.stack.objective import StageObjective
    from speechlmm_core.chat.tokenizer import ChatTokenizer
    from speechlmm_core.interfaces.context import BuildContext


class StageObjectiveConfig(ObjectiveConfig):
    """A stage's own loss, which finds the output of that stage where it looks for that of the whole adapter."""

    type: Literal["stack_stage"] = "stack_stage"
    adapter: StackAdapterConfig
    """The stack."""
    index: int
    """The stage's number, from 0."""
    stage: str
    """The stack's place in the model (`audio_adapter`)."""
    objective: AnyObjective
    """The stage's loss."""

    @property
    def stages(self) -> tuple[str, ...]:
        """What the stage's loss reads."""
        return self.objective.stages

    @property
    def needs_transcript(self) -> bool:
        """Whether the stage's loss compares a medium with its transcript."""
        return self.objective.needs_transcript

    @property
    def accepts_empty_targets(self) -> bool:
        """Whether an empty target is one for the stage's loss."""
        return self.objective.accepts_empty_targets

    def encode_transcript(self, transcript: str, tokenizer: ChatTokenizer) -> list[int]:
        """The targets of the stage's loss."""
        return self.objective.encode_transcript(transcript, tokenizer)

    def min_frames(self, target: list[int]) -> int:
        """Frames that the stage's loss needs."""
        return self.objective.min_frames(target)

    def build(self, ctx: BuildContext) -> StageObjective:
        """The module around the stage's loss."""
        from speechlmm_adapters.stack.objective import StageObjective

        return StageObjective(self, ctx)
