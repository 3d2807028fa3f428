"""The interface of an adapter's configuration: frames in, frames at the text decoder's width out. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

from speechlmm_core.lengths import Length
from speechlmm_core.registry import ComponentConfig, Registry

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_core.interfaces.modules import Adapter
    from speechlmm_core.interfaces.objective import ObjectiveConfig


class AdapterConfig(ComponentConfig, ABC):
    """Configuration of an adapter; also its weightless length arithmetic."""

    @abstractmethod
    def output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length | None:
        """The exact number of frames that come out, or None where it depends on the content."""

    def max_output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length:
        """An upper bound of the frames that come out; the exact number where that is known.

        So many positions are planned. Frames beyond them are left out of the language model's input: whether there
        are any is known on the device only, and is not read from there.
        """
        exact = self.output_lengths(num_frames, frame_rate)
        return num_frames if exact is None else exact

    @property
    def meets_target_lengths(self) -> bool:
        """Whether as many frames come out as the transcript has tokens, within the upper bound, where these are told.

        They are told in training and for losses on a given answer, and at most so many positions are planned then:
        the upper bound, where that is lower.
        """
        return False

    @abstractmethod
    def output_frame_rate(self, frame_rate: Fraction) -> Fraction:
        """Frames per second that come out (the mean, where it depends on the content)."""

    def output_size(self, ctx: BuildContext) -> int:
        """Width that comes out; the composite checks that it is the text decoder's."""
        return ctx.output_size

    def objectives(self, stage: str) -> Mapping[str, ObjectiveConfig]:
        """The component's own losses by name (CIF's quantity loss, say); the composite adds them.

        Args:
            stage: The adapter's stage in the model (`audio_adapter`, `video_adapter`), which its objectives read.
        """
        return {}

    def objective_frames(self, name: str, num_frames: Length, frame_rate: Fraction) -> Length:
        """The frames at most that the component's own objective ``name`` aligns with a transcript; those that come out.

        A target that needs more is left out of that objective, and counted.

        Args:
            name: A key of `objectives`.
            num_frames: Frames that flow in.
            frame_rate: Frames per second that flow in.
        """
        return self.max_output_lengths(num_frames, frame_rate)

    @abstractmethod
    def build(self, ctx: BuildContext) -> Adapter:
        """The module, randomly initialised."""


adapters: Registry[AdapterConfig] = Registry("adapter", AdapterConfig)
AnyAdapter = Annotated[AdapterConfig, adapters]
