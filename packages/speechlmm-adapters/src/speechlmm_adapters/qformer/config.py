"""Configuration of the Q-Former adapter. Imports no torch."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_adapters.attention_config import AttentionAdapterConfig
from speechlmm_core.errors import ConfigError
from speechlmm_core.lengths import Length, ceil_div

if TYPE_CHECKING:
    from speechlmm_adapters.qformer.adapter import QFormerAdapter
    from speechlmm_core.interfaces.context import BuildContext

CONTEXTS = ("context_seconds", "context_frames", "context_fraction")


class QFormerAdapterConfig(AttentionAdapterConfig):
    """Learned queries that read windows of frames: R Hz -> `num_queries` for every window.

    A last window that is not full counts as one. With neither `window_seconds` nor `window_frames` (both null) the
    queries read the whole clip, which then gives `num_queries` frames whatever its length. A length in seconds is
    rounded to frames, and is at least one.
    """

    type: Literal["qformer"] = "qformer"
    num_queries: Annotated[int, Field(ge=1)] = 1
    """Queries for each window."""
    window_seconds: Annotated[float, Field(gt=0)] | None = 0.333
    """Length of a window; left out where `window_frames` is given."""
    window_frames: Annotated[int, Field(ge=1)] | None = None
    """Length of a window in frames."""
    context_seconds: Annotated[float, Field(ge=0)] | None = None
    """What the queries see on each side of their window; at most one of the three contexts is given."""
    context_frames: Annotated[int, Field(ge=0)] | None = None
    """The same in frames."""
    context_fraction: Annotated[float, Field(ge=0)] | None = None
    """The same as a fraction of the window."""
    cross_attention_every: Annotated[int, Field(ge=1)] = 1
    """Every so many layers, beginning with the first, read the frames; the others only look at the queries."""

    @model_validator(mode="before")
    @classmethod
    def _frames_replace_seconds(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = cast("dict[str, Any]", data)
        replaced = given.get("window_frames") is not None and "window_seconds" not in given
        return {**given, "window_seconds": None} if replaced else given

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.window_seconds is not None and self.window_frames is not None:
            raise PydanticCustomError(
                "two_windows",
                "got `window_seconds: {seconds}` and `window_frames: {frames}`; make one of them null",
                {"seconds": self.window_seconds, "frames": self.window_frames},
            )
        contexts = [name for name in CONTEXTS if getattr(self, name) is not None]
        if len(contexts) > 1:
            raise PydanticCustomError(
                "two_contexts", "got {names}; give one of them", {"names": " and ".join(f"`{c}`" for c in contexts)}
            )
        if contexts and self.whole_utterance:
            raise PydanticCustomError(
                "context_without_window",
                "`{name}` needs windows, but `window_seconds` and `window_frames` are null; the queries then see all",
                {"name": contexts[0]},
            )
        return self

    @property
    def whole_utterance(self) -> bool:
        """Whether the queries read the whole clip."""
        return self.window_seconds is None and self.window_frames is None

    def window(self, frame_rate: Fraction) -> int:
        """Frames in a window.

        Raises:
            ConfigError: The windows are measured in seconds, and there is no frame rate.
        """
        if self.window_frames is not None:
            return self.window_frames
        assert self.window_seconds is not None
        return max(_frames(self.window_seconds, frame_rate, "window_seconds"), 1)

    def context(self, frame_rate: Fraction) -> int:
        """Frames that are seen on each side of a window.

        Raises:
            ConfigError: The context is measured in seconds, and there is no frame rate.
        """
        if self.context_seconds is not None:
            return _frames(self.context_seconds, frame_rate, "context_seconds")
        if self.context_fraction is not None:
            return _round(Fraction(str(self.context_fraction)) * self.window(frame_rate))
        return self.context_frames or 0

    def output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length:
        """The exact number of frames that come out."""
        if self.whole_utterance:
            return (num_frames > 0) * self.num_queries
        return ceil_div(num_frames, self.window(frame_rate)) * self.num_queries

    def output_frame_rate(self, frame_rate: Fraction) -> Fraction:
        """Frames per second that come out; 0 where the queries read whole clips, which have no rate then."""
        if self.whole_utterance:
            return Fraction(0)
        return frame_rate / self.window(frame_rate) * self.num_queries

    def build(self, ctx: BuildContext) -> QFormerAdapter:
        """The module, randomly initialised."""
        from speechlmm_adapters.qformer.adapter import QFormerAdapter

        return QFormerAdapter(self, ctx)


def _round(length: Fraction) -> int:
    """The nearest integer; halves are rounded up."""
    return math.floor(length + Fraction(1, 2))


def _frames(seconds: float, frame_rate: Fraction, field: str) -> int:
    if not frame_rate:
        raise ConfigError(
            f"`{field}: {seconds}` needs frames that come at a rate, and what flows into this Q-Former has none; "
            f"use `{field.replace('seconds', 'frames')}`"
        )
    return _round(Fraction(str(seconds)) * frame_rate)
