"""Configuration of next-token prediction, the loss of every language model. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from speechlmm_core.interfaces.objective import ObjectiveConfig

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_core.objectives.next_token.objective import NextTokenObjective


class NextTokenObjectiveConfig(ObjectiveConfig):
    """Cross-entropy of the supervised tokens, in the unit `supervised_tokens`."""

    type: Literal["next_token"] = "next_token"

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target's mass that is spread over the vocabulary."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The text decoder's hidden states."""
        return ("text_decoder",)

    def build(self, ctx: BuildContext) -> NextTokenObjective:
        """The module; it has no parameters of its own."""
        from speechlmm_core.objectives.next_token.objective import NextTokenObjective

        return NextTokenObjective(self)
