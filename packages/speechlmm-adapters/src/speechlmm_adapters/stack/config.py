"""Configuration of adapters in sequence. Imports no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from speechlmm_adapters.mlp.config import MLPAdapterConfig
from speechlmm_core.interfaces.adapter import AdapterConfig, AnyAdapter
from speechlmm_core.lengths import Length

if TYPE_CHECKING:
    from speechlmm_adapters.stack.adapter import StackAdapter
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_core.interfaces.objective import ObjectiveConfig


class StackAdapterConfig(AdapterConfig):
    """Adapters one after another; R Hz -> what the stages make of it in turn.

    Every stage but the last gives frames of width `hidden_size`. The stages' own losses are called
    ``<stage>_<loss>``, where the stage is named by its type, numbered where several stages have the same type: the
    quantity loss of the `cif` stage is ``cif_quantity``.
    """

    type: Literal["stack"] = "stack"
    stages: Annotated[list[AnyAdapter], Field(min_length=1)] = Field(default_factory=lambda: [MLPAdapterConfig()])
    """The adapters, in the order in which frames flow through them."""
    hidden_size: Annotated[int, Field(ge=1)] | None = None
    """Width between the stages; null for the width that flows into the stack."""

    @property
    def labels(self) -> list[str]:
        """The stages' names, each different: the type, with the stage's number where the type alone is ambiguous."""
        types = [stage.type.replace(".", "_") for stage in self.stages]
        counts = Counter(types)
        return [f"{name}{number}" if counts[name] > 1 else name for number, name in enumerate(types)]

    def rates(self, frame_rate: Fraction) -> list[Fraction]:
        """Frames per second that flow into each stage."""
        rates = [frame_rate]
        for stage in self.stages[:-1]:
            rates.append(stage.output_frame_rate(rates[-1]))
        return rates

    def output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length | None:
        """The exact number of frames that come out, or None where it depends on the content."""
        length: Length | None = num_frames
        for stage, rate in zip(self.stages, self.rates(frame_rate), strict=True):
            if length is not None:
                length = stage.output_lengths(length, rate)
        return length

    def max_output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length:
        """An upper bound of the frames that come out: each stage's bound for that of the stage before."""
        for stage, rate in zip(self.stages, self.rates(frame_rate), strict=True):
            num_frames = stage.max_output_lengths(num_frames, rate)
        return num_frames

    def output_frame_rate(self, frame_rate: Fraction) -> Fraction:
        """Frames per second that come out."""
        return self.stages[-1].output_frame_rate(self.rates(frame_rate)[-1])

    @property
    def meets_target_lengths(self) -> bool:
        """Whether a stage meets them, and those behind it keep the number of frames."""
        meeting = [number for number, stage in enumerate(self.stages) if stage.meets_target_lengths]
        return bool(meeting) and all(_keeps_lengths(stage) for stage in self.stages[meeting[-1] + 1 :])

    def sizes(self, ctx: BuildContext) -> list[tuple[int, int]]:
        """The width that flows into each stage, and the one that flows out."""
        sizes: list[tuple[int, int]] = []
        size = ctx.input_size
        for number, stage in enumerate(self.stages, start=1):
            wanted = ctx.output_size if number == len(self.stages) else self.hidden_size or ctx.input_size
            reached = stage.output_size(replace(ctx, input_size=size, output_size=wanted))
            sizes.append((size, reached))
            size = reached
        return sizes

    def output_size(self, ctx: BuildContext) -> int:
        """The last stage's width."""
        return self.sizes(ctx)[-1][1]

    def contexts(self, ctx: BuildContext) -> list[BuildContext]:
        """What each stage is built with."""
        return [
            replace(
                ctx,
                component=f"{ctx.component}.stages.{number}",
                input_size=size,
                output_size=reached,
                frame_rate=rate,
            )
            for number, ((size, reached), rate) in enumerate(
                zip(self.sizes(ctx), self.rates(ctx.frame_rate), strict=True)
            )
        ]

    def objectives(self, stage: str) -> dict[str, ObjectiveConfig]:
        """The losses of all stages, each of which reads what its own stage puts out."""
        from speechlmm_adapters.stack.objective_config import StageObjectiveConfig

        return {
            key: StageObjectiveConfig(
                adapter=self, index=index, stage=stage, objective=objective, weight=objective.weight
            )
            for key, index, _, objective in self._owned(stage)
        }

    def objective_frames(self, name: str, num_frames: Length, frame_rate: Fraction) -> Length:
        """The frames at most that a stage's objective aligns with a transcript: fewer may reach it, by the content."""
        # The names do not depend on the place in the model.
        index, own = next((index, own) for key, index, own, _ in self._owned("audio_adapter") if key == name)
        rates = self.rates(frame_rate)
        for stage, rate in zip(self.stages[:index], rates[:index], strict=True):
            num_frames = stage.max_output_lengths(num_frames, rate)
        return self.stages[index].objective_frames(own, num_frames, rates[index])

    def _owned(self, stage: str) -> list[tuple[str, int, str, ObjectiveConfig]]:
        """Every stage's losses: their names in the stack, the stage's index, their names in it, and they themselves."""
        return [
            (own if own == label else f"{label}_{own}", index, own, objective)
            for index, (label, adapter) in enumerate(zip(self.labels, self.stages, strict=True))
            for own, objective in adapter.objectives(stage).items()
        ]

    def build(self, ctx: BuildContext) -> StackAdapter:
        """The module, randomly initialised."""
        from speechlmm_adapters.stack.adapter import StackAdapter

        return StackAdapter(self, ctx)


def _keeps_lengths(adapter: AdapterConfig) -> bool:
    rates = (Fraction(1), Fraction(50))
    return all(adapter.output_lengths(length, rate) == length for length in range(1, 65) for rate in rates)
